"""The file of measured figures: what a study found, and how, where and when it was run."""

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ghost_plugin.utils.atomic_io import atomic_write

FILE = Path(__file__).with_name('results.json')
PACKAGES = (
    'torch', 'torchvision', 'timm', 'onedl-mmdetection', 'onnxruntime', 'openvino', 'nncf',
    'ncnn', 'pnnx', 'ai-edge-litert', 'litert-torch', 'executorch',
)  # fmt: skip


def load() -> dict[str, dict[str, Any]]:
    """All recorded studies by name."""
    return json.loads(FILE.read_text())


def record(name: str, rows: Sequence[dict[str, Any]], command: str, note: str = '') -> None:
    """Replace a study in the file of results.

    Args:
        name: Of the study.
        rows: What was found by name. Numbers and strings are kept, paths of checkpoints are not.
        command: The line that runs the study again, with placeholders for data of the user.
        note: Anything else that the figures depend on, in sentences.
    """
    found = load() if FILE.is_file() else {}
    kept = [
        {
            key: float(f'{value:.6g}') if isinstance(value, float) else value
            for key, value in row.items()
            if key != 'checkpoint' and isinstance(value, int | float | str)
        }
        for row in rows
    ]
    found[name] = {'command': command, **provenance(), 'note': note, 'rows': kept}
    with atomic_write(FILE) as partial_file:
        partial_file.write_text(json.dumps(dict(sorted(found.items())), indent=1) + '\n')


def lite0_top1(share: float) -> tuple[float, float]:
    """Top-1 of EfficientNet-Lite0 before and after a conversion, mean of the draws that have it.

    Args:
        share: Share of the multiply-adds that is kept.
    """
    top1 = {
        (row['draw'], row['macs_share'], row['way']): row['top1']
        for row in load()['efficientnet_lite0']['rows']
    }
    draws = [key[0] for key in top1 if key[1:] == (share, 'images')]
    before = statistics.mean(top1[draw, 1.0, 'original'] for draw in draws)
    return before, statistics.mean(top1[draw, share, 'images'] for draw in draws)


def provenance() -> dict[str, Any]:
    """Date, commit, machine, threads and versions."""
    return {
        'date': datetime.date.today().isoformat(),
        'commit': _commit(),
        'machine': machine(),
        'load': round(os.getloadavg()[1], 1),
        'threads': torch.get_num_threads(),
        'versions': {name: _version(name) for name in PACKAGES if _version(name)},
    }


def machine() -> str:
    """Processor, number of cores and vector instructions."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores'
    known = dict(line.split(':', 1) for line in lines if ':' in line)
    known = {key.strip(): value.strip() for key, value in known.items()}
    flags = known.get('flags', '').split()
    vectors = [
        text
        for flag, text in (('avx512f', 'AVX-512'), ('avx512_vnni', 'VNNI'), ('avx512_bf16', 'bf16'))
        if flag in flags
    ]
    name = known.get('model name', platform.machine())
    return ', '.join([f'{name}, {os.cpu_count()} cores', *vectors])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ''


def _commit() -> str:
    """Short hash of the checkout, marked where tracked files have changed."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(FILE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    code = ('--', 'ghost_plugin', 'configs', 'tools')
    changed = git('diff', '--name-only', 'HEAD', *code, f':!{FILE.name}')
    return git('rev-parse', '--short=7', 'HEAD') + (' with changes' if changed else '')
