"""What ``convert.py`` takes on the command line."""

import argparse
from pathlib import Path

from _cli import fail
from _options import Parser, above, amount, device, milliseconds, ratio, whole

from ghost_plugin.integrations.recipes import OPTIMIZERS
from ghost_plugin.integrations.sources import FORMS

BUDGETS = ('macs', 'params', 'latency')


def _model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('model', help=FORMS)
    add('--checkpoint', type=Path, metavar='FILE', help='weights of the model')
    add('--pretrained', action='store_true', help='published weights of timm or torchvision')
    add('--num-classes', type=whole, metavar='N', help='outputs of its classifier')
    add('--size', type=whole, nargs='+', metavar='PX', help='side, or height and width')
    for name in ('--mean', '--std'):
        add(name, type=float, nargs=3, metavar='X', help='of values in 0..1; or as the model says')
    add('--seed', type=int, default=0, help='of everything random')
    add('--device', help='cuda where there is one, else cpu')


def _plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add('-o', '--out', type=Path, required=True, metavar='PLAN', help='JSON file to write')
    add('--ratio', type=ratio, default=2, help='output maps per convolved map (%(default)s)')
    add('--dw-size', type=whole, default=3, help='side of the cheap kernels, odd (%(default)s)')
    add('--cheap', choices=['depthwise', 'shift', 'linear'], default='depthwise', help='operation')
    add('--include', nargs='+', metavar='P', help='convert only these: name, glob or re:...')
    add('--exclude', nargs='+', metavar='P', help='leave these alone: name, glob or re:...')
    add('--no-keep-first', action='store_true', help='the first conv may be converted, too')
    add('--no-keep-last', action='store_true', help='the last conv may be converted, too')
    add('--macs', type=amount, help='multiply-adds at most: share (0.6) or number (240M)')
    add('--params', type=amount, help='parameters at most: share or number')
    add('--latency', type=milliseconds, help='time at most: share or milliseconds (12ms)')
    _data(parser, '--data', 'pictures that a budget is scored on', False)
    add('--pictures', type=whole, default=256, help='how many of them (%(default)s)')


def _apply(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add('plan', type=Path, help='what plan wrote')
    add('-o', '--out', type=Path, required=True, help='state dict to write; OUT.plan.json, too')
    _data(parser, '--data', 'pictures, no labels needed; or the kernels are fitted', False)
    add('--pictures', type=whole, default=1024, help='how many of them (%(default)s)')
    add('--reconstruct', choices=['layer', 'block'], help='gradient steps towards the original')
    add('--steps', type=whole, metavar='N', help='how many, each layer or block')


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('plan', type=Path, help='what plan wrote')
    parser.add_argument('--picture', type=Path, metavar='PNG', help='draw it')


def _finetune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add('plan', type=Path, nargs='?', help='what plan wrote; or the model itself is trained')
    add('--weights', type=Path, metavar='FILE', help='what apply wrote; needed with a plan')
    add('-o', '--out', type=Path, required=True, help='state dict to write')
    _data(parser, '--data', 'training pictures', True)
    _data(parser, '--val', 'validation pictures', True)
    _labels(parser)
    add('--epochs', type=above, default=1.5, help='may be a fraction (%(default)s)')
    add('--optimizer', choices=list(OPTIMIZERS), default='sgd', help='%(default)s without it')
    add('--lr', type=above, help="highest learning rate; or the optimizer's")
    add('--weight-decay', type=float, help='not of norms and biases')
    add('--batch', type=whole, default=128, help='pictures per forward pass (%(default)s)')
    add('--accumulate', type=whole, default=1, metavar='N', help='batches per step')
    add('--hard', type=float, default=0.1, help='weight of the labels (%(default)s)')
    add('--soft', type=float, default=0.9, help="weight of the teacher's logits (%(default)s)")
    add('--temperature', type=above, default=4.0, help='of the logits (%(default)s)')
    add('--features', nargs='+', default=(), metavar='NAME', help='modules that are compared, too')
    add('--amp', action='store_true', help='mixed precision')
    add('--ema', type=float, default=0.0, metavar='DECAY', help='average the weights, 0.999')
    add('--no-flip', action='store_true', help='no mirrored pictures (digits)')
    add('--min-area', type=above, default=0.35, help='least share of a large picture')
    add('--workers', type=int, help='processes that decode large pictures')
    add('--resume', action='store_true', help='go on with an interrupted run')


def _evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add('--plan', type=Path, help='what plan wrote')
    add('--weights', type=Path, metavar='FILE', help='of the converted model')
    _data(parser, '--data', 'pictures in class folders; without them costs only', False)
    _labels(parser)
    add('--batch', type=whole, default=128, help='pictures per forward pass (%(default)s)')
    add('--workers', type=int, help='processes that decode large pictures')


def _data(parser: argparse.ArgumentParser, name: str, text: str, required: bool) -> None:
    split = 'train' if name == '--data' and parser.prog.split()[-1] != 'evaluate' else 'val'
    parser.add_argument(name, type=Path, required=required, metavar='DIR_OR_ZIP', help=text)
    option = '--val-split' if name == '--val' else '--split'
    parser.add_argument(option, default=split, help='split folder, if any (%(default)s)')


def _labels(parser: argparse.ArgumentParser) -> None:
    text = 'index of each class by name; imagenet-1k for WordNet ids'
    parser.add_argument('--labels', type=Path, metavar='JSON', help=text)


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
    return args if args.command == 'report' else _checked(args)


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    """What one option alone cannot know; better said now than after the work."""
    if 'weights' in args and bool(args.plan) != bool(args.weights):
        fail('a plan and --weights go together; without both it is the model itself')
    if len(args.size or ()) > 2:
        fail(f'--size takes a side, or height and width, got {args.size}')
    if 'out' in args:
        if args.out.is_dir():
            fail(f'{args.out} is a folder, give a file to write')
        args.out.parent.mkdir(parents=True, exist_ok=True)
    args.size = args.size and tuple(args.size * 2)[:2]
    args.device = device(args.device)
    return args
