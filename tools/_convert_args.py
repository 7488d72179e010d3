"""What ``convert.py`` takes on the command line."""

import argparse
import sys
from pathlib import Path

from _convert_checks import checked
from _convert_options import add_choice, add_data, add_labels, add_model

from ghost_plugin.cli.errors import fail
from ghost_plugin.cli.model_loading import is_config
from ghost_plugin.cli.options import Parser, above, whole
from ghost_plugin.training.config import OPTIMIZERS


def _plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser)
    add('-o', '--out', type=Path, required=True, metavar='PLAN', help='JSON file to write')
    add_choice(parser)
    add_data(parser, '--data', 'pictures that a budget is scored on', False)
    add('--pictures', type=whole, default=256, help='how many of them (%(default)s)')


def _config(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser)
    add('-o', '--out', type=Path, required=True, help='config to write; OUT.plan.json, too')
    add_choice(parser)
    text = 'pictures that a budget is scored on and, with a checkpoint, weights are fitted to'
    add_data(parser, '--data', text, False)
    add('--pictures', type=whole, default=256, help='how many of them (%(default)s)')


def _apply(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser)
    add('plan', type=Path, help='what plan wrote')
    add('-o', '--out', type=Path, required=True, help='state dict to write; OUT.plan.json, too')
    add_data(parser, '--data', 'pictures, no labels needed; or the kernels are fitted', False)
    add('--pictures', type=whole, default=1024, help='how many of them (%(default)s)')
    add('--reconstruct', choices=['layer', 'block'], help='gradient steps towards the original')
    add('--steps', type=whole, metavar='N', help='how many, each layer or block')


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('plan', type=Path, help='what plan wrote')
    parser.add_argument('--picture', type=Path, metavar='PNG', help='draw it')


def _finetune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser)
    add('plan', type=Path, nargs='?', help='what plan wrote; or the model itself is trained')
    add('--weights', type=Path, metavar='FILE', help='what apply wrote; needed with a plan')
    add('-o', '--out', type=Path, required=True, help='state dict to write')
    add_data(parser, '--data', 'training pictures', True)
    add_data(parser, '--val', 'validation pictures', True)
    add_labels(parser)
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
    add_model(parser)
    add('--plan', type=Path, help='what plan wrote')
    add('--weights', type=Path, metavar='FILE', help='of the converted model')
    add_data(parser, '--data', 'pictures in class folders; without them costs only', False)
    add_labels(parser)
    add('--batch', type=whole, default=128, help='pictures per forward pass (%(default)s)')
    add('--workers', type=int, help='processes that decode large pictures')


_COMMANDS = {
    'plan': (_plan, 'say what would be converted and what it saves'),
    'config': (_config, 'plan an OpenMMLab config and write one that trains its model converted'),
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
    given = sys.argv[1:]
    if given and is_config(given[0]):
        given.insert(0, 'config')
    args, more = parser.parse_known_args(given)
    if args.command == 'finetune' and not args.plan and len(more) == 1 and more[0][0] != '-':
        args.plan = Path(more.pop())  # argparse misses a PLAN that stands behind options
    if more:
        fail(f'unknown arguments: {" ".join(more)}; see --help')
    return args if args.command == 'report' else checked(args)
