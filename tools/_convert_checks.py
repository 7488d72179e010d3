"""What single options of ``convert.py`` cannot know; better said now than after the work."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from _convert_options import BUDGETS

from ghost_plugin.cli.errors import fail
from ghost_plugin.cli.model_loading import is_config
from ghost_plugin.cli.options import device
from ghost_plugin.utils.atomic_io import check_writable


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments, if they go together."""
    for said in _wrong(args):
        fail(said)
    if 'out' in args:
        check_writable(args.out)
        _spare_inputs(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
    args.size = args.size and tuple(args.size * 2)[:2]
    args.device = device(args.device)
    return args


def _wrong(args: argparse.Namespace) -> Iterator[str]:
    if 'weights' in args and bool(args.plan) != bool(args.weights):
        yield (
            'a plan and --weights go together; without both it is the model itself, whose weights '
            'are --checkpoint'
        )
    if args.command == 'apply' and args.steps and not args.reconstruct:
        yield '--steps are those of --reconstruct layer or block; give it, too, or leave them out'
    scored = args.command == 'plan' or (args.command == 'config' and not args.checkpoint)
    if scored and args.data and not any(vars(args)[name] for name in BUDGETS):
        yield (
            'only a budget is scored on the pictures of --data; give --macs, --params or '
            '--latency, or leave --data out'
        )
    if len(args.size or ()) > 2:
        yield f'--size takes a side, or height and width, got {args.size}'
    if args.command == 'config' and not is_config(args.model):
        yield f'{args.model} is no OpenMMLab config; plan and apply take other models'
    if args.command == 'config' and args.num_classes:
        yield 'a config says its num_classes itself; make one that inherits it and convert that'


def _spare_inputs(args: argparse.Namespace) -> None:
    """Leave before a result takes the place of what it was made from."""
    written = {args.out.resolve(), args.out.with_suffix('.plan.json').resolve()}
    for name in ('plan', 'weights', 'checkpoint'):
        given = getattr(args, name, None)
        if given and Path(given).resolve() in written:
            fail(f'{args.out} would take the place of {given}, which is read; give another --out')
