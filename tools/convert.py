#!/usr/bin/env python3
"""Convert a network that you have: plan, apply, report, finetune, evaluate.

    convert.py mmdet::retinanet/retinanet_r18_fpn_1x_coco.py --macs 0.6 -o converted.py
    convert.py plan timm:resnet18 -o plan.json
    convert.py apply timm:resnet18 plan.json --checkpoint mine.pth --data pictures -o converted.pth
    convert.py finetune timm:resnet18 plan.json --checkpoint mine.pth --weights converted.pth \
        --data pictures --val pictures -o tuned.pth
    convert.py evaluate timm:resnet18 --plan plan.json --weights tuned.pth --data pictures
"""

import argparse
import dataclasses
import json
from functools import partial
from typing import Any

from _convert_args import parse_args
from _convert_steps import calibration, load, planned

import ghost_plugin as gp
from ghost_plugin.cli.errors import fail, quiet_workers, tool
from ghost_plugin.cli.terminal import Meter, figures, show
from ghost_plugin.conversion.restore import converted
from ghost_plugin.training import evaluation
from ghost_plugin.training.config import Recipe
from ghost_plugin.training.image_folder import ImageFolder, read_labels
from ghost_plugin.training.loader import Augmentation, ImageLoader
from ghost_plugin.training.trainer import finetune, save

Result = tuple[dict[str, Any], list[str]]  # for machines, for people


def plan(args: argparse.Namespace, meter: Meter) -> Result:
    """Make a plan."""
    made = planned(args, load(args), meter)
    made.save(args.out)
    return made.as_dict(), [made.report(), '', f'plan: {args.out}']


def config(args: argparse.Namespace, meter: Meter) -> Result:
    """Make a plan of a config, and the config that trains its model converted."""
    from ghost_plugin.integrations.openmmlab.converted_config import check_files, write_converted

    check_files(args.out, args.model, args.checkpoint)
    source = load(args)
    made, model = planned(args, source, meter), None
    made.check_conversions()  # before anything is written
    if args.checkpoint:
        model = made.apply(source.model, **calibration(args, source, meter))
    files = write_converted(args.out, args.model, made, model)
    return made.as_dict(), [made.report(), '', f'written: {", ".join(map(str, files))}']


def apply(args: argparse.Namespace, meter: Meter) -> Result:
    """Convert by a plan."""
    source, made = load(args), gp.ConversionPlan.load(args.plan)
    options = calibration(args, source, meter)
    options |= {key: vars(args)[key] for key in ('reconstruct', 'steps') if vars(args)[key]}
    model = made.apply(source.model, **options)
    save(model.state_dict(), args.out)
    kept = args.out.with_suffix('.plan.json')
    made.save(kept)
    nets = {'original': source.model, 'converted': model}
    costs = {name: evaluation.costs(net, source.example()) for name, net in nets.items()}
    rows = figures([{'model': name, **cost} for name, cost in costs.items()])
    where = f'weights: {args.out}, plan with errors: {kept}'
    return {**costs, 'plan': made.as_dict()}, [made.report(), '', rows, '', where]


def report(args: argparse.Namespace, meter: Meter) -> Result:
    """Show a plan, and draw it."""
    made = gp.ConversionPlan.load(args.plan)
    if args.picture:
        made.draw(args.picture)
    return made.as_dict(), [made.report()]


def tune(args: argparse.Namespace, meter: Meter) -> Result:
    """Train with the original as teacher or, without a plan, the original itself."""
    source = load(args)
    model, teacher = source.model, None
    if args.plan:
        model, teacher = converted(source.model, args.plan, args.weights), source.model
    names = [field.name for field in dataclasses.fields(Recipe) if field.name in args]
    recipe = Recipe(**{name: getattr(args, name) for name in names})
    labels = read_labels(args.labels)
    train = ImageFolder(args.data, args.split, labels)
    val = ImageFolder(args.val, args.val_split, labels or train.classes)
    common = {'preprocessing': source.look, 'device': args.device, 'workers': args.workers}
    change = Augmentation(flip=not args.no_flip, min_area=args.min_area)
    feed, held = ImageLoader(train, augmentation=change, **common), ImageLoader(val, **common)
    for one in (feed, held):
        evaluation.check_classes(model, one, mapped=labels is not None)

    validate = partial(evaluation.top1, loader=held, batch=args.batch, progress=meter)
    state = args.out.with_name(f'{args.out.name}.state')
    try:
        history = finetune(model, feed, recipe, teacher=teacher, state=state, resume=args.resume,
                           validate=validate, progress=meter)  # fmt: skip
    except KeyboardInterrupt:
        fail('interrupted, finished epochs are kept; the same command with --resume goes on')
    save(model.state_dict(), args.out)
    return {'history': history, 'weights': str(args.out)}, [
        figures(history),
        '',
        f'weights: {args.out}',
    ]


def evaluate(args: argparse.Namespace, meter: Meter) -> Result:
    """Measure a model."""
    source = load(args)
    model = converted(source.model, args.plan, args.weights) if args.plan else source.model
    found = {}
    if args.data:
        labels = read_labels(args.labels)
        images = ImageFolder(args.data, args.split, labels)
        held = ImageLoader(images, source.look, device=args.device, workers=args.workers)
        evaluation.check_classes(model, held, mapped=labels is not None)
        found = dataclasses.asdict(evaluation.accuracy(model, held, args.batch, meter))
    found |= evaluation.costs_and_latency(model, source.example())
    return found, [figures([found]), '', f'latency: {found["setup"]}']


COMMANDS = {
    'plan': plan, 'config': config, 'apply': apply, 'report': report, 'finetune': tune,
    'evaluate': evaluate,
}  # fmt: skip


@tool
def main() -> None:
    args = parse_args(__doc__.splitlines()[0])
    quiet_workers()
    with Meter() as meter:
        found, lines = COMMANDS[args.command](args, meter)
    print(json.dumps(found, indent=1)) if args.json else show('\n'.join(lines))


if __name__ == '__main__':
    main()
