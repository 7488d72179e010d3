#!/usr/bin/env python3
"""timm's ResNet-18 on handwritten digits: trained, converted to half its multiply-adds, tuned."""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _cli import tool
from _terminal import Meter, figures, show

import ghost_plugin as gp
from ghost_plugin.integrations import sources
from ghost_plugin.integrations.evaluation import costs, top1
from ghost_plugin.integrations.feeding import Augmentation, Calibration, Feed
from ghost_plugin.integrations.finetuning import finetune, save
from ghost_plugin.integrations.folders import Pictures
from ghost_plugin.integrations.recipes import Recipe

ORIGINAL = Recipe(batch=64, hard=1.0, soft=0.0)
TUNING = Recipe(batch=64, lr=0.01)
SHARE = 0.5  # of the multiply-adds


def trained(
    source: sources.Source, feed: Feed, kept: Path, epochs: float, meter: Meter
) -> torch.nn.Module:
    """The original; training it is done once."""
    if not kept.is_file():
        state = kept.with_suffix('.state')
        recipe = replace(ORIGINAL, epochs=epochs)
        finetune(source.model, feed, recipe, state=state, resume=True, tick=meter)
        save(source.model.state_dict(), kept)
        state.unlink()
    gp.load_weights(source.model, kept)
    return source.model.eval()


def study(data: Path, out: Path, epochs: float, meter: Meter) -> list[dict[str, Any]]:
    """Figures of the original, the converted and the tuned network."""
    torch.manual_seed(0)
    source = sources.load('timm:resnet18', num_classes=10).adjusted(size=(32, 32))
    train = Pictures(data, 'train')
    feed = Feed(train, source.look, Augmentation(flip=False), tick=meter)
    held = Feed(Pictures(data, 'val', train.classes), source.look, tick=meter)
    measure, example = partial(top1, feed=held, tick=meter), source.example()
    original = trained(source, feed, out / 'resnet18.pth', epochs, meter)
    calibration = list(Calibration(Feed(train.some(512, 0), source.look, keep=True)))
    model, plan = gp.convert(original, example, macs=SHARE, calibration=calibration)
    nets = {'original': original, f'converted, {SHARE:.0%}': model}
    rows = [{'model': n, **measure(net), **costs(net, example)} for n, net in nets.items()]
    plan.save(out / 'plan.json')
    plan.draw(out / 'plan.png')
    recipe = replace(TUNING, epochs=epochs / 3)
    finetune(model, feed, recipe, teacher=original, tick=meter)
    save(model.state_dict(), out / 'converted.pth')
    rows.append({'model': 'fine-tuned', **measure(model), **costs(model, example)})
    timed = gp.analysis.time_together(
        {row['model']: partial(_call, net, example) for row, net in
         zip(rows, (original, *[model] * 2), strict=True)}
    )  # fmt: skip
    return [{**row, 'latency_ms': t.median} for row, t in zip(rows, timed, strict=True)]


@torch.no_grad()
def _call(model: torch.nn.Module, example: torch.Tensor) -> None:
    model.eval()(example)


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path, help='class folders with train and val')
    parser.add_argument('out', type=Path, help='folder for plan, picture, weights and table')
    parser.add_argument('--epochs', type=float, default=12, help='of the original (%(default)s)')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with Meter() as meter:
        rows = study(args.data, args.out, args.epochs, meter)
    (args.out / 'result.json').write_text(json.dumps(rows, indent=1))
    show(figures(rows))


if __name__ == '__main__':
    main()
