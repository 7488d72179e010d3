#!/usr/bin/env python3
"""timm's ResNet-18 on handwritten digits: trained, converted to less time in a runtime, tuned."""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _results import record

import ghost_plugin as gp
from ghost_plugin.cli import model_loading
from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.terminal import Meter, figures, show
from ghost_plugin.conversion import apply_plan
from ghost_plugin.profiling import MIN_ROUND_MS, time_together
from ghost_plugin.training.config import Recipe
from ghost_plugin.training.evaluation import costs, device_name, top1
from ghost_plugin.training.image_folder import ImageFolder
from ghost_plugin.training.loader import Augmentation, Calibration, ImageLoader
from ghost_plugin.training.trainer import finetune
from ghost_plugin.utils.checkpoint_io import save

ORIGINAL = Recipe(batch=64, label_weight=1.0, distill_weight=0.0)
TUNING = Recipe(batch=64, lr=0.01)
LATENCY = 0.7  # budget, as a share of the original's
MACS = 0.5  # budget where no plan meets that one
SIZE, BATCH = 32, 16  # of the timed images: pixels, images per batch
ROUNDS = 30
RUNTIMES = ('openvino', 'onnxruntime', 'channels-last')


def trained(
    source: model_loading.LoadedModel, loader: ImageLoader, kept: Path, epochs: float, meter: Meter
) -> torch.nn.Module:
    """The original; training it is done once."""
    if not kept.is_file():
        state = kept.with_suffix('.state')
        recipe = replace(ORIGINAL, epochs=epochs)
        finetune(source.model, loader, recipe, state=state, resume=True, progress=meter)
        save(source.model.state_dict(), kept)
        state.unlink()
    gp.load_weights(source.model, kept)
    return source.model.eval()


def fastest(model: torch.nn.Module, batch: torch.Tensor) -> str:
    """Name the runtime that takes the least time for a batch, of those that are installed."""
    calls = {}
    for name in RUNTIMES:
        try:
            calls[name] = gp.deploy.layer_timer(name)(model, batch)
        except (ImportError, ValueError):
            continue  # not installed, or not for this processor
    timings = time_together(calls, rounds=5, rest=True, min_ms=MIN_ROUND_MS)
    return min(timings, key=lambda timing: timing.median).name


def planned(
    model: torch.nn.Module, batch: torch.Tensor, runtime: str, calibration: list[torch.Tensor]
) -> tuple[gp.ConversionPlan, str]:
    """Plan for the budget of time, or for that of multiply-adds where no plan meets it.

    Args:
        model: The original in eval mode.
        batch: What is timed, (N, 3, H, W).
        runtime: What times it, a backend of :func:`ghost_plugin.deploy.layer_timer`.
        calibration: Batches to score convs on.

    Returns:
        The plan, and which budget it meets in words.
    """
    plan = partial(gp.plan, model, batch, calibration=calibration)
    try:
        made = plan(latency=LATENCY, latency_backend=runtime)
    except ValueError as error:
        return plan(macs=MACS), f'budget: macs={MACS}, because no plan met the time: {error}'
    share = made.latency['converted'] / made.latency['original']
    return made, f'budget: latency={LATENCY}, planning measured {share:.2f}'


def study(
    data: Path, out: Path, epochs: float, meter: Meter
) -> tuple[list[dict[str, Any]], list[str]]:
    """Convert the trained network and time it beside the original in one run.

    Args:
        data: Class folders with ``train`` and ``val``.
        out: Folder for weights, plan and its image.
        epochs: Of the original.
        meter: Shows progress.

    Returns:
        Figures of the original, the converted and the tuned network; how they were made, in words.
    """
    torch.manual_seed(0)
    source = model_loading.load('timm:resnet18', num_classes=10).adjusted(size=(SIZE, SIZE))
    train = ImageFolder(data, 'train')
    loader = ImageLoader(train, source.preprocessing, Augmentation(flip=False))
    held = ImageLoader(ImageFolder(data, 'val', train.classes), source.preprocessing)
    original = trained(source, loader, out / 'resnet18.pth', epochs, meter)
    calibration = list(Calibration(ImageLoader(train.some(512, 0), source.preprocessing)))
    batch = calibration[0][:BATCH]
    runtime = fastest(original, batch)
    plan, budget = planned(original, batch, runtime, calibration)
    result = apply_plan(plan, original, calibration=calibration)
    model, plan = result.model, result.plan
    plan.save(out / 'plan.json')
    plan.draw(out / 'plan.png')

    rows, calls = [], {}

    def measure(name: str, net: torch.nn.Module) -> None:
        accuracy = top1(net, held, progress=meter)
        rows.append({'model': name, **accuracy, **costs(net, source.example())})
        calls[name] = gp.deploy.layer_timer(runtime)(net.eval(), batch)

    measure('original', original)
    measure('converted', model)
    finetune(model, loader, replace(TUNING, epochs=epochs / 3), teacher=original, progress=meter)
    save(model.state_dict(), out / 'converted.pth')
    measure('fine-tuned', model)
    timings = time_together(calls, ROUNDS, rest=True, min_ms=MIN_ROUND_MS)
    for row, timing in zip(rows, timings, strict=True):
        row['latency_ms'] = timing.median
        row['latency_ratio'] = timing.median / timings[0].median
    return rows, [
        f'latency: {runtime}, batch {len(batch)}, {SIZE} x {SIZE} px, {device_name("cpu")}, '
        f'median of {ROUNDS} rounds; multiply-adds: of one image',
        budget,
    ]


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path, help='class folders with train and val')
    parser.add_argument('out', type=Path, help='folder for plan, image, weights and table')
    parser.add_argument('--epochs', type=float, default=12, help='of the original (%(default)s)')
    parser.add_argument('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with Meter() as meter:
        rows, notes = study(args.data, args.out, args.epochs, meter)
    (args.out / 'result.json').write_text(json.dumps(rows, indent=1))
    text = '\n'.join([figures(rows), '', *notes])
    (args.out / 'table.md').write_text(f'{text}\n')
    show(text)
    if args.record:
        command = 'python tools/studies/convert_digits.py data/digits/classification OUT --record'
        record('convert_digits', rows, command, '. '.join(notes) + '.')


if __name__ == '__main__':
    main()
