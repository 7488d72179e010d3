#!/usr/bin/env python3
"""Error of converted networks on new images by the number of calibration images.

Example: python tools/studies/few_images.py --networks resnet18 --sizes 64 --modes layers
"""

import argparse
import itertools
import time

import torch
import torchvision
from _results import record
from torch import nn
from torch.optim.swa_utils import update_bn

import ghost_plugin as gp

NETWORKS = {
    'resnet18': torchvision.models.resnet18,
    'mobilenet_v2': torchvision.models.mobilenet_v2,
    'regnet_x_400mf': torchvision.models.regnet_x_400mf,
}
# Name of a mode: arguments of ConversionPlan.apply.
MODES = {
    'least squares': {},
    'layer': {'reconstruct': 'layer', 'steps': 60},
    'block': {'reconstruct': 'block', 'steps': 60},
}
NUMBERS = (0, 1, 2, 4, 8, 16, 64)
RISE, FLOOR = 1.05, 1e-4  # a rise of the error by this factor, from this error on, is counted
NEW_IMAGES = 16


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--sizes', nargs='+', type=int, default=[32, 64, 224], help='pixels')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=list(MODES))
    parser.add_argument('--numbers', nargs='+', type=int, default=list(NUMBERS), help='of images')
    parser.add_argument('--macs', type=float, default=0.6, help='budget, share of multiply-adds')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--record', action='store_true', help='store in results.json')
    return parser.parse_args()


def images(number: int, size: int, seed: int) -> torch.Tensor:
    """Smooth random images with noise, (number, 3, size, size) within 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode='bilinear')
    return 0.7 * smooth + 0.3 * torch.rand(number, 3, size, size, generator=generator)


def network(name: str, size: int, seed: int) -> nn.Module:
    """A random network whose norms hold the mean statistics of some batches."""
    torch.manual_seed(seed)
    model = NETWORKS[name](num_classes=10)
    update_bn([images(8, size, 1000 + step) for step in range(20)], model)
    return model.eval()


@torch.no_grad()
def error(model: nn.Module, converted: nn.Module, x: torch.Tensor) -> float:
    """Relative error of the outputs."""
    want = model(x)
    return ((converted(x) - want).norm() / want.norm()).item()


def main() -> None:
    args = parse_args()
    print('| network | size | mode |', ' | '.join(map(str, args.numbers)), '| rises | seconds |')
    print('| --- ' * (len(args.numbers) + 5) + '|')
    rows = []
    for name, size in itertools.product(args.networks, args.sizes):
        model = network(name, size, args.seed)
        new = images(NEW_IMAGES, size, 1)
        plan = gp.plan(model, new[:1], macs=args.macs)
        for mode in args.modes:
            errors, start = [], time.perf_counter()
            for number in args.numbers:
                data = [images(number, size, 2)] if number else None
                options = MODES[mode] if number else {}
                errors.append(error(model, plan.apply(model, calibration=data, **options), new))
            rises = sum(b > RISE * max(a, FLOOR) for a, b in itertools.pairwise(errors))
            figures = ' | '.join(f'{e:.3g}' for e in errors)
            seconds = time.perf_counter() - start
            print(f'| {name} | {size} | {mode} | {figures} | {rises} | {seconds:.0f} |', flush=True)
            by_number = {f'images {n}': e for n, e in zip(args.numbers, errors, strict=True)}
            rows.append({'network': name, 'size': size, 'mode': mode, **by_number})
    if args.record:
        chosen = [
            f'--networks {" ".join(args.networks)}',
            f'--sizes {" ".join(map(str, args.sizes))}',
        ]
        command = 'python tools/studies/few_images.py'
        record('few_images', rows, ' '.join([command, *chosen, '--record']))


if __name__ == '__main__':
    main()
