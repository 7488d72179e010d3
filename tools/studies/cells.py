#!/usr/bin/env python3
"""RetinaNet on blood cells with four backbones, from scratch, by one recipe: AP, costs, times.

With several seeds each backbone is trained once by each; scores are their means, least and most.

First: python tools/data/voc_to_coco.py BCCD_ZIP data/bccd
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from _results import record
from _tasks import TOOLS, Task, train
from mmengine.config import Config

from ghost_plugin.cli.errors import fail, named, tool
from ghost_plugin.cli.options import whole
from ghost_plugin.cli.terminal import show, table
from ghost_plugin.integrations.openmmlab.runner_setup import build_model
from ghost_plugin.profiling import time_together
from ghost_plugin.utils.modules import call_model

OURS = TOOLS.parent / 'configs/detection/retinanet_ghostnet-100_fpn_bccd.py'
DATA = Path('data/bccd')
SIDE = 320  # pixels; costs are counted on a square
AP, AP50 = 'coco/bbox_mAP', 'coco/bbox_mAP_50'
LEARNT = dict(norm_eval=False, init_cfg=None)  # nothing frozen, nothing pretrained
# What takes the place of the recipe's backbone, and the channels of its maps at strides 4 to 32.
BACKBONES = {
    'GhostNet 1.0x (ours)': None,
    "timm's GhostNet 1.0x": (
        dict(
            type='mmpretrain.TIMMBackbone',
            model_name='ghostnet_100',
            features_only=True,
            out_indices=(1, 2, 3, 4),
        ),
        [24, 40, 80, 160],
    ),
    'MobileNetV2 1.0x': (
        dict(type='MobileNetV2', out_indices=(1, 2, 4, 6), **LEARNT),
        [24, 32, 96, 320],
    ),
    'ResNet-18': (dict(type='ResNet', depth=18, frozen_stages=-1, **LEARNT), [64, 128, 256, 512]),
}
SEEDED = """_base_ = {base!r}
randomness = dict(seed={seed})
"""
LONGER = """train_cfg = dict(max_epochs={0})
param_scheduler = {1!r}
"""
OTHER = """model = dict(backbone=dict(_delete_=True, **{!r}), neck=dict(in_channels={!r}))
"""


def tasks(
    out: Path, seeds: Sequence[int] = (0,), only: str = '', epochs: int | None = None
) -> list[Task]:
    """Those backbones whose name holds ``only``, by every seed; their configs are written."""
    studied = []
    schedule, suffix = (_schedule(epochs), f'_epochs{epochs}') if epochs else ('', '')
    for name, other in named(only, BACKBONES).items():
        number = list(BACKBONES).index(name)
        for seed in seeds:
            config = out / f'backbone{number}_seed{seed}{suffix}.py'
            text = SEEDED.format(base=str(OURS), seed=seed) + schedule
            config.write_text(text + (OTHER.format(*other) if other else ''))
            studied.append(Task(f'{name}, seed {seed}', name, config, SIDE, AP, 'AP {:.3f}'))
    return studied


def _schedule(epochs: int) -> str:
    """Lines of a config that stretch the recipe's schedule."""
    *warmup, cosine = (dict(row) for row in Config.fromfile(OURS).param_scheduler)
    return LONGER.format(epochs, [*warmup, {**cosine, 'T_max': epochs}])


def latencies(studied: list[Task]) -> dict[str, float]:
    """Median milliseconds of one image through each detector, without what draws its boxes."""
    configs = {task.model: task.config for task in studied}
    models = {name: build_model(config).eval() for name, config in configs.items()}
    given = dict(inputs=torch.randn(1, 3, SIDE, SIDE), mode='tensor')
    calls = {name: partial(call_model, model, given) for name, model in models.items()}
    with torch.no_grad():
        timings = time_together(calls)
    return {timing.name: timing.median for timing in timings}


def cells(name: str, runs: list[dict]) -> list[str]:
    """A line of the table."""
    scores = [_spread([run['metrics'][key] for run in runs]) for key in (AP, AP50)]
    costs = [f'{runs[0]["params"] / 1e6:.2f}', f'{runs[0]["macs"] / 1e6:.0f}']
    minutes = mean(run['seconds'] for run in runs) / 60
    return [name, *scores, *costs, f'{minutes:.1f}', f'{runs[0]["latency_ms"]:.1f}']


def _spread(values: list[float]) -> str:
    several = f' ({min(values):.3f} to {max(values):.3f})' if len(values) > 1 else ''
    return f'{mean(values):.3f}{several}'


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/study_cells'), help='results')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='a run by each')
    parser.add_argument('--epochs', type=whole, help="instead of the recipe's")
    parser.add_argument('--only', default='', help='backbones whose name holds this')
    parser.add_argument('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    out = args.out.resolve()
    if not DATA.is_dir():
        fail(f'{DATA} is not there; make it with python tools/data/voc_to_coco.py BCCD_ZIP {DATA}')
    out.mkdir(parents=True, exist_ok=True)
    studied = tasks(out, args.seeds, args.only, args.epochs)
    found: dict[str, list[dict]] = {}
    for task in studied:
        found.setdefault(task.model, []).append(train(task, out / task.config.stem))
    for name, milliseconds in latencies(studied).items():
        found[name] = [run | {'latency_ms': milliseconds} for run in found[name]]
    (out / 'result.json').write_text(json.dumps(found, indent=1))
    head = ['Backbone', 'AP', 'AP50', 'Params (M)', f'MACs (M) at {SIDE} px', 'Training (min)',
            'Inference (ms)']  # fmt: skip
    show(table(head, [cells(name, runs) for name, runs in found.items()]))
    if args.record:
        rows = [
            {
                'model': name,
                'seed': seed,
                **run,
                'ap': run['metrics'][AP],
                'ap50': run['metrics'][AP50],
            }
            for name, runs in found.items()
            for seed, run in zip(args.seeds, runs, strict=True)
        ]
        seeds = ' '.join(map(str, args.seeds))
        record('cells', rows, f'python tools/studies/cells.py --seeds {seeds} --record')


if __name__ == '__main__':
    main()
