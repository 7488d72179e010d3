#!/usr/bin/env python3
"""First weights: spread of untrained blocks, and accuracy after a few steps beside timm's.

Trains on the 8x8 digits that scikit-learn holds, enlarged to 32 pixels; networks of this package
and of timm with the same layers get the same batches. Images are drawn anew for the first table.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from statistics import mean

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn

from ghost_plugin.cli.errors import needs, tool

needs('timm', 'sklearn')

import timm
from _results import record
from sklearn.datasets import load_digits

import ghost_plugin  # noqa: F401  registers its models
from ghost_plugin.backbones.bottlenecks import GhostBottleneck
from ghost_plugin.backbones.g_ghost_regnet import RegNetBottleneck

PAIRS = {
    'ghostnet_plugin_050': 'ghostnet_050',
    'ghostnet_plugin': 'ghostnet_100',
    'ghostnet_plugin_v2_100': 'ghostnetv2_100',
    'ghostnet_plugin_v3_100': 'ghostnetv3_100',
}
BLOCKS = (GhostBottleneck, RegNetBottleneck)
TRAIN, HELD = slice(0, 1382), slice(1451, 1797)  # other writers; half a writer between
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    'sgd': lambda params, lr: torch.optim.SGD(params, lr or 0.02, 0.9, weight_decay=1e-4),
    'adamw': lambda params, lr: torch.optim.AdamW(params, lr or 1e-3, weight_decay=0.05),
}


@torch.no_grad()
def spread(model: nn.Module, images: torch.Tensor) -> tuple[list[float], float]:
    """Standard deviations that the blocks of a network give, and float32's relative error.

    Args:
        model: Untrained, in eval mode.
        images: (N, 3, H, W).
    """
    found: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _, __, maps: found.append(maps.std().item()))
        for module in model.modules()
        if isinstance(module, BLOCKS) or type(module).__name__.startswith('GhostBottleneck')
    ]
    given = model(images)
    for hook in hooks:
        hook.remove()
    exact = copy.deepcopy(model).double()(images.double())
    return found, ((given - exact).abs().max() / exact.abs().max()).item()


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 3, 32, 32) of mean 0 and variance 1, and their classes."""
    images, classes = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    images = F.interpolate(images, (32, 32), mode='bilinear').expand(-1, 3, -1, -1)
    return (images - images.mean()) / images.std(), torch.tensor(classes)


def batches(number: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices of the images of each step, (64,)."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(number):
        if len(left) < 64:
            left = torch.randperm(TRAIN.stop, generator=generator)
        yield left[:64]
        left = left[64:]


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> list[float]:
    """Share of held-back images that are right in eval mode, and with exact running statistics.

    The difference between the two is what the running statistics lag behind the weights.
    """
    model = copy.deepcopy(model)
    given = [model.eval()(images[HELD])]
    update_bn(images[TRAIN].split(256), model.train())
    given.append(model.eval()(images[HELD]))
    return [(g.argmax(1) == classes[HELD]).float().mean().item() for g in given]


def train(name: str, seed: int, steps: list[int], optimizer: str, lr: float) -> list[float]:
    """For each number of steps: accuracy of the last ten batches, and of held-back images."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10).train()
    images, classes = digits()
    update = OPTIMIZERS[optimizer](model.parameters(), lr)
    results, seen = [], []
    for step, chosen in enumerate(batches(max(steps), seed), 1):
        logits = model(images[chosen])
        seen.append((logits.argmax(1) == classes[chosen]).float().mean().item())
        update.zero_grad()
        F.cross_entropy(logits, classes[chosen]).backward()
        update.step()
        if step in steps:
            results += [mean(seen[-10:]), *accuracy(model, images, classes)]
    return results


def line(name: str, *cells: object) -> None:
    """Print one row of a table."""
    print(f'| {name:24} |', ' | '.join(str(cell) for cell in cells), '|', flush=True)


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--models', nargs='*', choices=PAIRS, default=['ghostnet_plugin_050'], help='to train')
    add('--spread', nargs='*', default=[*PAIRS, 'ghostnet_plugin_gghost_032'], help='not trained')
    add('--seeds', type=int, default=5, help='how many')
    add('--steps', type=int, nargs='+', default=[38, 100], help='of 64 images, to measure after')
    add('--optimizer', choices=OPTIMIZERS, default='sgd')
    add('--lr', type=float, default=0.0, help='0.02 for SGD, 0.001 for AdamW')
    add('--record', action='store_true', help='store the means in results.json')
    args = parser.parse_args()
    line('untrained, eval, 224 px', 'least std', 'largest std', 'last std', 'float32 error')
    for name in [n for ours in args.spread for n in (ours, PAIRS.get(ours)) if n]:
        torch.manual_seed(0)
        found, error = spread(timm.create_model(name).eval(), torch.randn(2, 3, 224, 224))
        line(name, *(f'{v:.3g}' for v in (min(found), max(found), found[-1])), f'{error:.1e}')
    heads = [
        f'{part} {steps}' for steps in args.steps for part in ('train', 'held back', 'exact norms')
    ]
    line('accuracy after steps', 'seed', *heads)
    means = []
    for name in [n for ours in args.models for n in (ours, PAIRS[ours])]:
        rows = []
        for seed in range(args.seeds):
            rows.append(train(name, seed, args.steps, args.optimizer, args.lr))
            line(name, seed, *(f'{value:.3f}' for value in rows[-1]))
        found = [mean(values) for values in zip(*rows, strict=True)]
        line(name, 'mean', *(f'{value:.3f}' for value in found))
        means.append({'model': name, **dict(zip(heads, found, strict=True))})
    if args.record:
        command = f'python tools/studies/first_weights.py --optimizer {args.optimizer} --record'
        record('first_weights', means, command, f'Means of {args.seeds} seeds.')


if __name__ == '__main__':
    main()
