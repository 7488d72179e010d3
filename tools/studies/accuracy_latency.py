#!/usr/bin/env python3
"""Accuracy and milliseconds of small networks in eight runtimes, at batch 1 and 224 pixels.

Weights are fresh, because they do not change the time; accuracies are those of the published ones.
The files of a network are written once and kept, so an interrupted study goes on. Then all
networks take turns in all runtimes, in a process of its own for each number of threads.
"""

import argparse
import functools
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from _results import lite0_top1, record
from torch import nn

import ghost_plugin as gp
from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.options import whole
from ghost_plugin.cli.terminal import show, table
from ghost_plugin.deploy.backends import ModelVariants
from ghost_plugin.deploy.export_formats import FORMATS
from ghost_plugin.deploy.inference import InferenceFn, aot_fn, openvino_fn, pytorch_fn
from ghost_plugin.profiling import MIN_ROUND_MS, time_together
from ghost_plugin.utils.modules import plain_forward
from ghost_plugin.weights import PUBLISHED

SIZE = 224
LITE0 = 'tf_efficientnet_lite0', 74.846  # accuracies of timm's networks: results-imagenet.csv
# As in efficientnet_lite0.py, where the accuracies of converted ones come from.
SETTINGS: dict[str, Any] = {'keep_first': False, 'keep_last': False}


@dataclass(frozen=True)
class Network:
    """A network and its accuracy.

    Attributes:
        title: Name for people.
        name: Of the model in timm.
        top1: Of the published weights, in per cent.
        kind: ``'ours'``, ``'converted'`` or ``'others'``.
        share: Share of the multiply-adds that a conversion keeps.
    """

    title: str
    name: str
    top1: float
    kind: str = 'others'
    share: float = field(default=1.0, kw_only=True)

    def build(self) -> nn.Module:
        """Make it with fresh weights, in eval mode."""
        torch.manual_seed(0)
        model = timm.create_model(self.name).eval()
        if self.share == 1:
            return model
        example = torch.randn(1, 3, SIZE, SIZE)
        plan = gp.plan(model, example, macs=self.share, **SETTINGS)
        return plan.apply(model).eval()


def _ours(title: str, name: str) -> Network:
    return Network(title, name, PUBLISHED[name].top1, 'ours')


def _converted(share: float) -> Network:
    """Its accuracy: the published one, less what the conversion lost on other images."""
    before, after = lite0_top1(share)
    name, top1 = LITE0
    return Network(f'Lite0 at {share:.0%}', name, top1 - before + after, 'converted', share=share)


NETWORKS = (
    Network('MobileNetV3-L', 'mobilenetv3_large_100', 75.784),
    Network('MobileNetV4-S', 'mobilenetv4_conv_small', 73.756),
    Network("timm's RepGhostNet 1.0x", 'repghostnet_100', 74.208),
    Network('LCNet 1.0x', 'lcnet_100', 72.130),
    Network('HGNetV2-B0', 'hgnetv2_b0', 77.362),
    Network('StarNet-S4', 'starnet_s4', 78.824),
    Network('EfficientNet-Lite0', *LITE0),
    _converted(0.9),
    _converted(0.8),
    _ours('GhostNet 1.0x', 'ghostnet_plugin'),
    _ours('GhostNetV2 1.0x', 'ghostnet_plugin_v2_100'),
    _ours('GhostNetV3 1.0x', 'ghostnet_plugin_v3_100'),
    _ours('RepGhostNet 1.0x', 'ghostnet_plugin_rep_100'),
)


@dataclass(frozen=True)
class Runtime:
    """A runtime and the file that it reads.

    Attributes:
        name: For people.
        suffix: Of the file; '' for none.
        read: Makes an inference function of the file.
        options: Of :func:`ghost_plugin.export`.
        one_thread: The file is compiled for a number of threads, of which the study takes one.
    """

    name: str
    suffix: str
    read: Callable[[Path], InferenceFn] | None = None
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)
    one_thread: bool = field(default=False, kw_only=True)


# As gp.optimize writes them.
INDEXED: dict[str, Any] = {'exporter': 'trace', 'portable': False}
RUNTIMES = (
    Runtime('PyTorch', ''),
    Runtime('TorchScript', '.pt', FORMATS['.pt'].read, options=INDEXED),
    Runtime('AOTInductor', '.pt2', aot_fn, options={'aot': True}, one_thread=True),
    Runtime('ONNX Runtime', '.onnx', FORMATS['.onnx'].read, options=INDEXED),
    Runtime('OpenVINO', '.onnx', openvino_fn, options=INDEXED),
    Runtime('ncnn', '.ncnn.param', FORMATS['.ncnn.param'].read),
    Runtime('LiteRT', '.tflite', FORMATS['.tflite'].read),
    Runtime('ExecuTorch', '.pte', FORMATS['.pte'].read),
)


def write_files(network: Network, runtimes: list[Runtime], out: Path) -> None:
    """Write the files of a network that are not there yet.

    Args:
        network: The network.
        runtimes: What shall read them.
        out: Folder of the files.
    """
    missing = {
        row.suffix: row
        for row in runtimes
        if row.suffix and not _path(network, row.suffix, out).is_file()
    }
    if not missing:
        return
    model, example = network.build(), torch.randn(1, 3, SIZE, SIZE)
    for suffix, row in missing.items():
        try:
            path = _path(network, suffix, out)
            report = gp.export(model, example, path, dynamic=False, **row.options)
            print(f'{path.name}: {report.max_rel_diff:.0e}', flush=True)
        except (ValueError, ImportError) as error:  # the table gets the reason
            print(f'{network.title}, {row.name}: {error}', flush=True)


def _path(network: Network, suffix: str, out: Path) -> Path:
    share = '' if network.share == 1 else f'-{network.share:g}'
    return out / f'{network.name}{share}{suffix}'


@plain_forward()
def measure(
    networks: list[Network], runtimes: list[Runtime], out: Path, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """Time all networks in all runtimes, in alternation.

    Args:
        networks: What is timed.
        runtimes: In what it is timed.
        out: Folder of the files.
        threads: Of every runtime.
        rounds: Timed rounds of each.

    Returns:
        A row for each network, with the median of the milliseconds by the name of the runtime.
    """
    torch.set_num_threads(threads)
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    rows, tasks = [], {}
    for place, network in enumerate(networks):
        variants = ModelVariants(network.build(), image)
        macs = gp.count(variants.fused.model, image).macs
        rows.append(
            {'model': network.title, 'kind': network.kind, 'threads': threads,
             'top1': network.top1, 'macs': macs}
        )  # fmt: skip
        for row in runtimes:
            path = _path(network, row.suffix, out)
            if not row.read:
                run = pytorch_fn(variants.channels_last, channels_last=True)
            elif path.is_file() and not (row.one_thread and threads > 1):
                run = row.read(path)
            else:
                continue
            tasks[place, row.name] = functools.partial(run, [image])
    for timing in time_together(tasks, rounds, 3, rest=True, min_ms=MIN_ROUND_MS):
        place, runtime = timing.name
        rows[place][runtime] = timing.median
    return rows


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    titles, names = [row.title for row in NETWORKS], [row.name for row in RUNTIMES]
    add('--out', type=Path, default=Path('work_dirs/study_accuracy_latency'))
    add('--networks', nargs='+', choices=titles, default=titles, metavar='TITLE')
    add('--runtimes', nargs='+', choices=names, default=names, metavar='NAME')
    add('--threads', type=whole, nargs='+', default=[1], help='of every runtime (1)')
    add('--rounds', type=whole, default=15, help='timed rounds of each (%(default)s)')
    add('--files', action='store_true', help='write the files only')
    add('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    networks = [row for row in NETWORKS if row.title in args.networks]
    runtimes = [row for row in RUNTIMES if row.name in args.runtimes]
    torch.set_num_threads(1)
    for network in networks:
        write_files(network, runtimes, args.out)
    if args.files:
        return
    # ExecuTorch keeps the threads of its first program.
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        cases = [(networks, runtimes, args.out, count, args.rounds) for count in args.threads]
        rows = [row for case in cases for row in pool.apply(measure, case)]
    shown = ['model', 'threads', *args.runtimes]
    show(table(shown, [[_cell(row.get(key, '')) for key in shown] for row in rows]))
    if args.record:
        note = (
            f'Batch 1, {SIZE} pixels, medians of {args.rounds} rounds of 20 ms; the column Threads '
            'holds the threads of all runtimes. Files of AOTInductor are compiled for one thread. '
            'Top-1 of a conversion: that of the original, less what the conversion lost on 150 '
            'images, mean of two draws.'
        )
        record('accuracy_latency', rows, 'python tools/studies/accuracy_latency.py --record', note)


def _cell(value: float | str) -> str:
    return f'{value:.2f}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
    main()
