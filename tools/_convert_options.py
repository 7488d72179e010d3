"""Options that several commands of ``convert.py`` take."""

import argparse
from pathlib import Path

from ghost_plugin.cli.model_loading import FORMS
from ghost_plugin.cli.options import amount, milliseconds, ratio, whole
from ghost_plugin.deploy.backends import OF_LAYERS

BUDGETS = ('macs', 'params', 'latency')


def add_model(parser: argparse.ArgumentParser) -> None:
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


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Which convs become what, as ``gp.plan`` takes it."""
    add = parser.add_argument
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
    add('--latency-by', choices=list(OF_LAYERS), help='backend that --latency times (eager)')


def add_data(parser: argparse.ArgumentParser, name: str, text: str, required: bool) -> None:
    split = 'train' if name == '--data' and parser.prog.split()[-1] != 'evaluate' else 'val'
    parser.add_argument(name, type=Path, required=required, metavar='DIR_OR_ZIP', help=text)
    option = '--val-split' if name == '--val' else '--split'
    parser.add_argument(option, default=split, help='split folder, if any (%(default)s)')


def add_labels(parser: argparse.ArgumentParser) -> None:
    text = 'index of each class by name; imagenet-1k for WordNet ids'
    parser.add_argument('--labels', type=Path, metavar='JSON', help=text)
