"""The command ``swap``: a GhostNet as the backbone of an OpenMMLab config."""

import argparse
import json
from pathlib import Path

from ..utils import optional
from .errors import fail
from .options import Command, Parser, whole

optional.require('mmengine', 'mmcv')

from mmengine.config import Config
from mmengine.logging import MMLogger

from ..integrations.openmmlab.backbone_swap import (
    load_config,
    refuse_python_style,
    swap_backbone,
    write_config,
)
from ..integrations.openmmlab.backbone_swap.smoke_test import smoke_test, verify
from ..integrations.openmmlab.runner_setup import check_checkpoint
from .terminal import show, table
from .train import KeyValues

VARIANTS = {
    'v1': 'GhostNet',
    'v2': 'GhostNetV2',
    'v3': 'GhostNetV3',
    'g-ghost': 'GGhostRegNet',
    'rep': 'RepGhostNet',
}
_BACKBONE = ('width', 'arch', 'out_indices', 'output_stride', 'frozen_stages')
_TRAINING = ('pretrained', 'lr_scale', 'backbone_lr')


def add_options(parser: Parser) -> None:
    """Add the options of ``swap``."""
    add = parser.add_argument
    add('config', help='file, or mmdet::..., mmpretrain::... of an installed package')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--variant', choices=VARIANTS, default='v1', help='our backbone')
    kind.add_argument('--backbone', help='any registered type instead')
    add('--width', type=float, help='multiplier of the channels')
    add('--arch', help='size of G-Ghost, such as 032')
    add('--out-indices', type=int, nargs='+', help='stride indices 0..5 of the outputs')
    add('--output-stride', type=int, help='8, 16 or 32')
    add('--frozen-stages', type=int, help='-1 none, 0 stem, k up to stride index k')
    add('--pretrained', help='weights of the backbone, file or URL')
    add('--lr-scale', type=float, help='factor of the learning rate')
    add('--backbone-lr', type=float, help='factor of the backbone against the rest')
    add('--with', nargs='+', default=[], dest='others', metavar='CONFIG',
        help='more configs to inherit: data, schedule, runtime')  # fmt: skip
    add('--cfg-options', nargs='+', action=KeyValues, default={}, help='key.sub=value')
    add('--smoke-test', action='store_true',
        help='build both models, train a step, predict, count by part')  # fmt: skip
    add('--size', type=whole, help='image size of --smoke-test, pixels')
    add('--json', help='file for the results of --smoke-test')
    add('-o', '--out', required=True, help='config to write')
    parser.rename('--check', '--smoke-test')
    parser.rename('--side', '--size')
    parser.rename('--family', '--variant')


def _smoke_test(args: argparse.Namespace, old: Config, new: Config) -> None:
    """Run both models and print the costs of their parts."""
    rows = smoke_test(old, new, args.size)
    head = ['part', 'params (M)', 'now', f'MACs (M) at {rows[0]["side"]} px', 'now']
    keys = ('params', 'new_params', 'macs', 'new_macs')
    show(table(head, [[row['part'], *(f'{row[key] / 1e6:.2f}' for key in keys)] for row in rows]))
    print('checked: one training step with finite gradients, one prediction')
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2))


def run(args: argparse.Namespace) -> None:
    """Write a config with another backbone, after its model trained a step."""
    if (args.size or args.json) and not args.smoke_test:
        fail('--size and --json are for --smoke-test; add it')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    given = {name: value for name, value in vars(args).items() if value is not None}
    backbone_args = {name: given[name] for name in _BACKBONE if name in given}
    training = {name: given[name] for name in _TRAINING if name in given}
    cfg = load_config(args.config)
    refuse_python_style(args.config)
    if args.pretrained:
        check_checkpoint(args.pretrained)
    backbone = args.backbone or f'ghost_plugin.{VARIANTS[args.variant]}'
    swap = swap_backbone(cfg, backbone, backbone_args, **training)
    changes = Config(swap.change)
    changes.merge_from_dict(args.cfg_options)
    remarks = list(swap.remarks)
    new = write_config(
        args.out,
        [args.config, *args.others],
        changes.to_dict(),
        'ghost-plugin swap',
        accept=lambda written: remarks.extend(verify(cfg, written)),
    )
    print(f'{args.out}: {backbone} replaces the backbone of {cfg.model.get("type")}')
    for remark in remarks:
        print(f'note: {remark}')
    if args.smoke_test:
        _smoke_test(args, cfg, new)


COMMANDS = {
    'swap': Command(add_options, run, """
ghost-plugin swap mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --width 0.5 -o mine.py --smoke-test
ghost-plugin swap mine.py --variant v3 --pretrained ghostnetv3.pth --backbone-lr 0.1 -o v3.py
"""),
}  # fmt: skip
