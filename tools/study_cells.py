#!/usr/bin/env python3
"""RetinaNet on blood cells with four backbones, from scratch, by one recipe: AP, costs, times.

First: python tools/voc_to_coco.py BCCD_ZIP data/bccd
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from _cli import fail, tool
from _tasks import TOOLS, Task, train
from _terminal import show, table

import ghost_plugin as gp
from ghost_plugin.integrations.runs import build_model

OURS = TOOLS.parent / 'configs/detection/retinanet_ghostnet-100_fpn_bccd.py'
DATA = Path('data/bccd')
SIDE = 320  # pixels; costs are counted on a square
LEARNT = dict(norm_eval=False, init_cfg=None)  # nothing frozen, nothing pretrained
# The backbone that takes the place of ours, and the channels of its maps at strides 4 to 32.
OTHERS = {
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
OTHER = """_base_ = {base!r}
model = dict(backbone=dict(_delete_=True, **{backbone!r}), neck=dict(in_channels={channels!r}))
"""


def tasks(out: Path) -> list[Task]:
    """Ours and the others, whose configs are written."""
    configs = {'GhostNet 1.0x (ours)': OURS}
    for number, (name, (backbone, channels)) in enumerate(OTHERS.items()):
        configs[name] = out / f'other{number}.py'
        text = OTHER.format(base=str(OURS), backbone=backbone, channels=channels)
        configs[name].write_text(text)
    return [Task(name, name, path, SIDE, 'coco/bbox_mAP', 'AP') for name, path in configs.items()]


def latencies(studied: list[Task]) -> list[float]:
    """Median milliseconds of one picture through each detector, without what draws its boxes."""
    models = {task.name: build_model(task.config).eval() for task in studied}
    given = dict(inputs=torch.randn(1, 3, SIDE, SIDE), mode='tensor')
    calls = {name: partial(gp.analysis.call, model, given) for name, model in models.items()}
    with torch.no_grad():
        return [timing.median for timing in gp.analysis.time_together(calls)]


def cells(name: str, row: dict) -> list[str]:
    """A line of the table."""
    scores = [f'{row["metrics"][f"coco/{key}"]:.3f}' for key in ('bbox_mAP', 'bbox_mAP_50')]
    costs = [f'{row["params"] / 1e6:.2f}', f'{row["macs"] / 1e6:.0f}']
    return [name, *scores, *costs, f'{row["seconds"] / 60:.1f}', f'{row["latency_ms"]:.1f}']


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/study_cells'), help='results')
    out = parser.parse_args().out.resolve()
    if not DATA.is_dir():
        fail(f'{DATA} is not there; make it with python tools/voc_to_coco.py BCCD_ZIP {DATA}')
    out.mkdir(parents=True, exist_ok=True)
    studied = tasks(out)
    found = {task.name: train(task, out / task.config.stem) for task in studied}
    for task, milliseconds in zip(studied, latencies(studied), strict=True):
        found[task.name] |= {'latency_ms': milliseconds}
    (out / 'result.json').write_text(json.dumps(found, indent=1))
    head = ['Backbone', 'AP', 'AP50', 'Params (M)', f'MACs (M) at {SIDE} px', 'Training (min)',
            'Inference (ms)']  # fmt: skip
    show(table(head, [cells(name, row) for name, row in found.items()]))


if __name__ == '__main__':
    main()
