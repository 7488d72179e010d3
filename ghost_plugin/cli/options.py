"""The argument parser of all commands, types of options, and options that commands share."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..utils.atomic_io import check_writable
from .errors import fail
from .model_loading import FORMS, LoadedModel, load


@dataclass(frozen=True)
class Command:
    """One command of ``ghost-plugin``.

    Attributes:
        add_options: Adds the arguments to a parser.
        run: Called with the parsed arguments.
        examples: Shown by ``--help``, one per line.
    """

    add_options: Callable[['Parser'], None]
    run: Callable[[argparse.Namespace], None]
    examples: str


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which knows former names of options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self._former_names: dict[str, str] = {}

    def error(self, message: str) -> NoReturn:
        fail(message.replace('unrecognized arguments', 'unknown arguments'))

    def rename(self, former: str, name: str) -> None:
        """Accept the former name of an option, with a warning, for one release.

        Args:
            former: Such as ``--free``.
            name: Such as ``--dynamic``.
        """
        self._former_names[former] = name

    def parse_known_args(
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse after former names of options are replaced.

        Args:
            args: Arguments; those of the process if None.
            namespace: Takes the values.
        """
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._current_name(arg) for arg in given], namespace)

    def _current_name(self, arg: str) -> str:
        former, equals, value = arg.partition('=')
        name = self._former_names.get(former)
        if name is None:
            return arg
        print(f'warning: {former} is called {name} now', file=sys.stderr)
        return f'{name}{equals}{value}'


def amount(text: str) -> float | str:
    """A share of the whole (0.6) or a number, also with a unit (240M), as gp.plan takes it."""
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+)([kmg]?)', text.strip().lower())
    value = float(match[1]) if match else math.nan
    if not value > 0 or (not match[2] and value > 1 and value != round(value)):
        raise argparse.ArgumentTypeError(f'{text!r} is neither a share (0.6) nor a number (240M)')
    if match[2]:
        return match[1] + {'k': 'k', 'm': 'M', 'g': 'G'}[match[2]]
    return value if value <= 1 else f'{value / 1000:.15g}k'


def milliseconds(text: str) -> float | str:
    """A share of the whole (0.6), or milliseconds (12, 12ms), as gp.plan takes it."""
    bare = text.strip().lower().removesuffix('ms')
    value = _number(bare)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a share (0.6) nor a time (12ms)')
    return value if value <= 1 and bare == text.strip() else f'{value:.15g}ms'


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def whole(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        hint = '' if text.lstrip('-').isdigit() else '; options of several values go last'
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0{hint}')
    return int(text)


def above(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value


def ratio(text: str) -> float | int:
    """A number above 0, an int if it is whole."""
    value = above(text)
    return int(value) if value == int(value) else value


def group_size(text: str) -> int | str:
    """A whole number above 0, or ``all``."""
    return text if text == 'all' else whole(text)


def target(text: str) -> Path:
    """A file that can be written; checked before the work."""
    check_writable(text)
    return Path(text)


def device(name: str | None) -> str:
    """A device that exists; CUDA if available when no name is given."""
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=name or default)
    except (RuntimeError, AssertionError):  # the latter if torch was built without it
        fail(f'no device {name!r} here; there is {default}')
    return name or default


def add_model(parser: Parser) -> None:
    """Add the model and everything that says how it is built."""
    add = parser.add_argument
    add('model', help=FORMS)
    add('--checkpoint', type=Path, metavar='FILE', help='weights of the model')
    add('--pretrained', action='store_true', help='published weights of timm or torchvision')
    add('--num-classes', type=whole, metavar='N', help='outputs of its classifier')
    add('--size', type=whole, nargs='+', metavar='PX', help='of images: one size, or height, width')


def add_normalization(parser: Parser) -> None:
    """Add the mean and the standard deviation of images."""
    for name in ('--mean', '--std'):
        parser.add_argument(
            name, type=float, nargs=3, metavar='X', help="of values in 0..1; the model's without"
        )


def load_model(args: argparse.Namespace) -> LoadedModel:
    """The model of :func:`add_model`'s options.

    Args:
        args: Parsed; ``mean`` and ``std`` may be missing.
    """
    if len(args.size or ()) > 2:
        fail(f'--size takes one size, or height and width, got {args.size}')
    source = load(args.model, args.num_classes, args.checkpoint, args.pretrained)
    size = args.size and tuple(args.size * 2)[:2]
    return source.adjusted(size, getattr(args, 'mean', None), getattr(args, 'std', None))


def add_converted(parser: Parser) -> None:
    """Add the plan and the weights of a converted model."""
    parser.add_argument('--plan', type=Path, help='plan of a converted model; needs --weights')
    parser.add_argument(
        '--weights', type=Path, metavar='FILE', help='weights of the converted model'
    )


def check_converted(args: argparse.Namespace) -> None:
    """Exit unless a plan and weights are given together or not at all."""
    if bool(args.plan) != bool(args.weights):
        fail(
            'a plan and --weights go together; without both the model itself is used, whose '
            'weights are --checkpoint'
        )
