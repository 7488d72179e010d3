#!/usr/bin/env python3
"""Convert a network that you have: plan, apply, report, finetune, evaluate.

    convert.py plan timm:resnet18 -o plan.json
    convert.py apply timm:resnet18 plan.json --checkpoint mine.pth --data pictures -o converted.pth
    convert.py finetune timm:resnet18 plan.json --checkpoint mine.pth --weights converted.pth \
        --data pictures --val pictures -o tuned.pth
    convert.py evaluate timm:resnet18 --plan plan.json --weights tuned.pth --data pictures
"""

import argparse
import dataclasses
import json
from typing import Any

import torch
from _cli import quiet_workers, tool
from _convert_args import parse_args
from _terminal import Meter, show, table

import ghost_plugin as gp
from ghost_plugin.integrations import evaluation, sources
from ghost_plugin.integrations.feeding import Augmentation, Calibration, Feed
from ghost_plugin.integrations.finetuning import finetune, save
from ghost_plugin.integrations.folders import Pictures, read_labels
from ghost_plugin.integrations.looks import Look
from ghost_plugin.integrations.recipes import Recipe
from ghost_plugin.integrations.restoring import converted

BUDGETS = ('macs', 'params', 'latency')


def load(args: argparse.Namespace) -> sources.Source:
    """The model of the command line on its device, and the look of its pictures."""
    torch.manual_seed(args.seed)
    source = sources.load(args.model, args.num_classes, args.checkpoint, args.pretrained)
    source = source.adjusted(args.size, args.mean, args.std)
    source.model.to(args.device)
    evaluation.costs(source.model, source.look.size)  # says so where it does not run at all
    return source


def calibration(args: argparse.Namespace, look: Look, meter: Meter) -> dict[str, Any]:
    """The pictures that a conversion may see, as an argument, if there are any."""
    if args.data is None:
        return {}
    pictures = Pictures(args.data, args.split).some(args.pictures, args.seed)
    feed = Feed(pictures, look, device=args.device, keep=True, tick=meter)
    return {'calibration': Calibration(feed)}


def plan(args: argparse.Namespace, meter: Meter) -> None:
    """Plan, print and save."""
    source = load(args)
    names = ('ratio', 'dw_size', 'cheap', 'include', 'exclude', *BUDGETS, 'seed')
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if any(name in options for name in BUDGETS):
        options |= calibration(args, source.look, meter)
    options |= {'keep_first': not args.no_keep_first, 'keep_last': not args.no_keep_last}
    made = gp.plan(source.model, evaluation.example(source.look.size, args.device), **options)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    made.save(args.out)
    say(args, made.as_dict(), made.report(), '', f'plan: {args.out}')


def apply(args: argparse.Namespace, meter: Meter) -> None:
    """Convert, print and save."""
    source, made = load(args), gp.ConversionPlan.load(args.plan)
    options = calibration(args, source.look, meter)
    if args.reconstruct:
        options['reconstruct'] = args.reconstruct
    model = made.apply(source.model, **options)
    save(model.state_dict(), args.out)
    kept = args.out.with_suffix('.plan.json')
    made.save(kept)
    costs = {
        name: dict(zip(('params', 'macs'), evaluation.costs(m, source.look.size), strict=True))
        for name, m in (('original', source.model), ('converted', model))
    }
    figures = table(
        ['Model', 'Params (M)', 'MACs (M)'],
        [[name, *(f'{n / 1e6:.3f}' for n in cost.values())] for name, cost in costs.items()],
    )
    say(args, {**costs, 'plan': made.as_dict()}, made.report(), '', figures, '',
        f'weights: {args.out}, plan with errors: {kept}')  # fmt: skip


def report(args: argparse.Namespace, meter: Meter) -> None:
    """Print a plan, and draw it."""
    made = gp.ConversionPlan.load(args.plan)
    if args.picture:
        made.draw(args.picture)
    say(args, made.as_dict(), made.report())


def tune(args: argparse.Namespace, meter: Meter) -> None:
    """Train with the original as teacher or, without a plan, the original itself."""
    source = load(args)
    model, teacher = source.model, None
    if args.plan:
        model, teacher = converted(source.model, args.plan, args.weights), source.model
    names = [field.name for field in dataclasses.fields(Recipe) if field.name in args]
    recipe = Recipe(**{name: getattr(args, name) for name in names})
    labels = read_labels(args.labels)
    train = Pictures(args.data, args.split, labels)
    val = Pictures(args.val, args.val_split, labels or train.classes)
    common = {'look': source.look, 'device': args.device, 'workers': args.workers, 'tick': meter}
    change = Augmentation(flip=not args.no_flip, min_area=args.min_area)
    feed, held = Feed(train, augmentation=change, **common), Feed(val, **common)
    for one in (feed, held):
        evaluation.check_classes(model, one, mapped=labels is not None)

    def validate(net: torch.nn.Module) -> dict[str, float]:
        return {'top1': evaluation.accuracy(net, held, args.batch, meter).top1}

    state = args.out.with_name(f'{args.out.name}.state')
    history = finetune(model, feed, recipe, teacher=teacher, state=state, resume=args.resume,
                       validate=validate, tick=meter)  # fmt: skip
    save(model.state_dict(), args.out)
    rows = [[f'{e["epoch"]}', f'{e["loss"]:.4f}', f'{e["top1"]:.2f}'] for e in history]
    say(args, {'history': history, 'weights': str(args.out)},
        table(['Epoch', 'Loss', 'Top-1 (%)'], rows), '', f'weights: {args.out}')  # fmt: skip


def evaluate(args: argparse.Namespace, meter: Meter) -> None:
    """Print what a model is worth."""
    source = load(args)
    model = converted(source.model, args.plan, args.weights) if args.plan else source.model
    found = {}
    if args.data:
        labels = read_labels(args.labels)
        pictures = Pictures(args.data, args.split, labels)
        held = Feed(pictures, source.look, device=args.device, workers=args.workers, tick=meter)
        evaluation.check_classes(model, held, mapped=labels is not None)
        found = dataclasses.asdict(evaluation.accuracy(model, held, args.batch, meter))
    found |= evaluation.expenses(model, source.look.size)
    heads, cells = zip(
        *(COLUMNS[name](found[name]) for name in COLUMNS if found.get(name)), strict=True
    )
    say(args, found, table(heads, [cells]), '', f'latency: {found["setup"]}')


def say(args: argparse.Namespace, figures: dict[str, Any], *lines: str) -> None:
    """Print for people, or for machines."""
    if args.json:
        print(json.dumps(figures, indent=1))
    else:
        show('\n'.join(lines))


# What evaluate shows of its figures, as column and cell.
COLUMNS = {
    'top1': lambda share: ('Top-1 (%)', f'{share:.2f}'),
    'top5': lambda share: ('Top-5 (%)', f'{share:.2f}'),
    'pictures': lambda number: ('Pictures', str(number)),
    'params': lambda number: ('Params (M)', f'{number / 1e6:.3f}'),
    'macs': lambda number: ('MACs (M)', f'{number / 1e6:.2f}'),
    'latency_ms': lambda time: ('Latency (ms)', f'{time:.2f}'),
}
COMMANDS = {'plan': plan, 'apply': apply, 'report': report, 'finetune': tune, 'evaluate': evaluate}


@tool
def main() -> None:
    args = parse_args(__doc__.splitlines()[0])
    quiet_workers()
    with Meter() as meter:
        COMMANDS[args.command](args, meter)


if __name__ == '__main__':
    main()
