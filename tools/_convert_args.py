"""What ``convert.py`` takes on the command line."""

import argparse
import math
import re
from pathlib import Path
from typing import NoReturn

import torch
from _cli import fail

from ghost_plugin.integrations.recipes import OPTIMIZERS
from ghost_plugin.integrations.sources import FORMS

_UNITS = {'': 1, 'k': 1e3, 'm': 1e6, 'g': 1e9}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every tool here does."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def amount(text: str) -> float | int:
    """A share of the whole (0.6) or a number with or without a unit (240M)."""
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+)([kmg]?)', text.strip().lower())
    value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a share (0.6) nor a number (240M)')
    return value if value <= 1 and not match[2] else round(value)


def milliseconds(text: str) -> float:
    """A share of the whole (0.6) or milliseconds (12, 12ms)."""
    try:
        value = float(text.strip().lower().removesuffix('ms'))
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a share (0.6) nor a time (12ms)')
    return value


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
    return int(text)


def _above(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value


def _ratio(text: str) -> float | int:
    value = _above(text)
    return int(value) if value == int(value) else value


def _model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('model', help=FORMS)
    add('--checkpoint', type=Path, metavar='FILE', help='weights of the model')
    add('--pretrained', action='store_true', help='published weights of timm or torchvision')
    add('--num-classes', type=_whole, metavar='N', help='outputs of its classifier')
    add('--size', type=_whole, nargs='+', metavar='PX', help='side, or height and width')
    add('--mean', type=float, nargs=3, help='of values within 0..1; the model may know its own')
    add('--std', type=float, nargs=3, help='of values within 0..1; the model may know its own')
    add('--seed', type=int, default=0, help='of everything random')
    add('--device', help='cuda where there is one, else cpu')


def _plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add('-o', '--out', type=Path, required=True, metavar='PLAN', help='JSON file to write')
    add('--ratio', type=_ratio, default=2, help='output maps per convolved map')
    add('--dw-size', type=_whole, default=3, help='side of the cheap kernels, odd')
    add('--cheap', choices=['depthwise', 'shift', 'linear'], default='depthwise')
    patterns = 'name, glob or re:... of modules'
    add('--include', nargs='+', metavar='P', help=f'convert only these: {patterns}')
    add('--exclude', nargs='+', metavar='P', help=f'leave these alone: {patterns}')
    add('--no-keep-first', action='store_true', help='the first conv may be converted, too')
    add('--no-keep-last', action='store_true', help='the last conv may be converted, too')
    add('--macs', type=amount, help='multiply-adds at most: share (0.6) or number (240M)')
    add('--params', type=amount, help='parameters at most: share or number')
    add('--latency', type=milliseconds, help='time at most: share or milliseconds (12ms)')
    _data(parser, '--data', 'pictures that a budget is scored on', False)
    add('--pictures', type=_whole, default=256, help='of them')


def _apply(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add('plan', type=Path, help='what plan wrote')
    add('-o', '--out', type=Path, required=True, help='state dict to write; OUT.plan.json, too')
    _data(
        parser, '--data', 'pictures, no labels needed; without them the kernels are fitted', False
    )
    add('--pictures', type=_whole, default=1024, help='of them')
    add('--reconstruct', choices=['layer', 'block'], help='gradient steps towards the original')


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('plan', type=Path, help='what plan wrote')
    parser.add_argument('--picture', type=Path, metavar='PNG', help='draw it')


def _finetune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add(
        'plan', type=Path, nargs='?', help='what plan wrote; without it the model itself is trained'
    )
    add('--weights', type=Path, metavar='FILE', help='what apply wrote; needed with a plan')
    add('-o', '--out', type=Path, required=True, help='state dict to write')
    _data(parser, '--data', 'training pictures', True)
    _data(parser, '--val', 'validation pictures', True)
    _labels(parser)
    add('--epochs', type=_above, default=1.5, help='may be a fraction')
    add('--optimizer', choices=list(OPTIMIZERS), default='sgd')
    add('--lr', type=_above, help='highest learning rate')
    add('--weight-decay', type=float)
    add('--batch', type=_whole, default=128, help='pictures per forward pass')
    add('--accumulate', type=_whole, default=1, metavar='N', help='batches per step')
    add('--hard', type=float, default=0.1, help='weight of the labels beside a teacher')
    add('--soft', type=float, default=0.9, help="weight of the teacher's logits")
    add('--temperature', type=_above, default=4.0, help='of the logits')
    add('--features', nargs='+', default=(), metavar='NAME', help='modules that are compared, too')
    add('--amp', action='store_true', help='mixed precision')
    add('--ema', type=float, default=0.0, metavar='DECAY', help='average the weights, 0.999')
    add('--no-flip', action='store_true', help='no mirrored pictures (digits)')
    add('--min-area', type=_above, default=0.35, help='seen of large pictures at least, a share')
    add('--workers', type=int, help='processes that decode large pictures')
    add('--resume', action='store_true', help='go on with an interrupted run')


def _evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add('--plan', type=Path, help='what plan wrote')
    add('--weights', type=Path, metavar='FILE', help='of the converted model')
    _data(parser, '--data', 'pictures in class folders; without them costs only', False)
    _labels(parser)
    add('--batch', type=_whole, default=128, help='pictures per forward pass')
    add('--workers', type=int, help='processes that decode large pictures')


def _data(parser: argparse.ArgumentParser, name: str, text: str, required: bool) -> None:
    split = 'train' if name == '--data' and parser.prog.split()[-1] != 'evaluate' else 'val'
    parser.add_argument(name, type=Path, required=required, metavar='DIR_OR_ZIP', help=text)
    option = '--val-split' if name == '--val' else '--split'
    parser.add_argument(option, default=split, help=f'split folder of {name}, where it has some')


def _labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--labels', type=Path, metavar='JSON', help='index of each class by name')


_COMMANDS = {
    'plan': (_plan, 'say what would be converted and what it saves'),
    'apply': (_apply, 'convert, with the weights of the original'),
    'report': (_report, 'show a plan'),
    'finetune': (_finetune, 'train a converted model with the original as teacher'),
    'evaluate': (_evaluate, 'accuracy, parameters, multiply-adds, latency'),
}


def parse_args(description: str) -> argparse.Namespace:
    """The command line of ``convert.py``."""
    parser = Parser(description=description)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, (fill, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        fill(command)
        command.add_argument('--json', action='store_true', help='print JSON only')
    args, more = parser.parse_known_args()
    if args.command == 'finetune' and not args.plan and len(more) == 1 and more[0][0] != '-':
        args.plan = Path(more.pop())  # argparse misses a PLAN that stands behind options
    if more:
        fail(f'unknown arguments: {" ".join(more)}; see --help')
    if args.command == 'report':
        return args
    if len(args.size or ()) > 2:
        fail(f'--size takes a side, or height and width, got {args.size}')
    if args.command == 'finetune' and bool(args.plan) != bool(args.weights):
        fail('PLAN and --weights go together: apply writes the weights; without both the model '
             'itself is trained')  # fmt: skip
    if args.command == 'evaluate' and bool(args.plan) != bool(args.weights):
        fail('--plan and --weights go together')
    args.size = args.size and tuple(args.size * 2)[:2]
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    return args
