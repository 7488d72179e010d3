#!/usr/bin/env python3
"""Put a GhostNet into a config of MMDetection, MMPretrain, MMSegmentation or MMPose."""

import argparse
import json
from pathlib import Path

from ghost_plugin.cli.errors import fail, needs, tool
from ghost_plugin.cli.openmmlab_options import key_values

needs('mmengine', 'mmcv')

from mmengine.config import Config
from mmengine.logging import MMLogger

from ghost_plugin.integrations.openmmlab.backbone_swap import (
    load_config,
    refuse_python_style,
    swap_backbone,
    write_config,
)
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import smoke_test, verify
from ghost_plugin.integrations.openmmlab.runner_setup import check_checkpoint

FAMILIES = {'v1': 'GhostNet', 'v2': 'GhostNetV2', 'v3': 'GhostNetV3', 'g-ghost': 'GGhostRegNet'}
BACKBONE = ('width', 'arch', 'out_indices', 'output_stride', 'frozen_stages')
TRAINING = ('pretrained', 'lr_scale', 'backbone_lr')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='file, or mmdet::..., mmpretrain::... of an installed package'
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--family', choices=FAMILIES, default='v1', help='of our backbones')
    kind.add_argument('--backbone', help='any registered type instead')
    parser.add_argument('--width', type=float, help='multiplier of the channels')
    parser.add_argument('--arch', help='size of G-Ghost, such as 032')
    parser.add_argument('--out-indices', type=int, nargs='+', help='levels 0..5 to take')
    parser.add_argument('--output-stride', type=int, help='8, 16 or 32')
    parser.add_argument('--frozen-stages', type=int, help='-1 none, 0 stem, k up to level k')
    parser.add_argument('--pretrained', help='weights of the backbone, file or address')
    parser.add_argument('--lr-scale', type=float, help='factor of the learning rate')
    parser.add_argument('--backbone-lr', type=float, help='factor of the backbone against the rest')
    parser.add_argument('--with', nargs='+', default=[], dest='others', metavar='CONFIG',
                        help='more configs to inherit: data, schedule, runtime')  # fmt: skip
    parser.add_argument('--cfg-options', nargs='+', action=key_values(), default={},
                        help='more changes, as in OpenMMLab: key.sub=value')  # fmt: skip
    parser.add_argument('--check', action='store_true',
                        help='build both models, train a step, predict, count by part')  # fmt: skip
    parser.add_argument('--side', type=int, help='of the pictures of --check, pixels')
    parser.add_argument('--json', help='file for the figures of --check')
    parser.add_argument('-o', '--out', required=True, help='config to write')
    args = parser.parse_args()
    if (args.side or args.json) and not args.check:
        fail('--side and --json are for --check; add it')
    return args


def check(args: argparse.Namespace, old: Config, new: Config) -> None:
    """Print what the parts cost before and after."""
    rows = smoke_test(old, new, args.side)
    macs = f'MACs (M) at {rows[0]["side"]} px'
    print(f'| part | params (M) | now | {macs} | now |\n| --- | --- | --- | --- | --- |')
    for row in rows:
        figures = (row[key] / 1e6 for key in ('params', 'new_params', 'macs', 'new_macs'))
        print('|', ' | '.join([row['part'], *(f'{figure:.2f}' for figure in figures)]), '|')
    print('checked: one training step with finite gradients, one prediction')
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2))


@tool
def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    given = {name: value for name, value in vars(args).items() if value is not None}
    backbone_args = {name: given[name] for name in BACKBONE if name in given}
    training = {name: given[name] for name in TRAINING if name in given}
    cfg = load_config(args.config)
    refuse_python_style(args.config)
    if args.pretrained:
        check_checkpoint(args.pretrained)
    backbone = args.backbone or f'ghost_plugin.{FAMILIES[args.family]}'
    swap = swap_backbone(cfg, backbone, backbone_args, **training)
    changes = Config(swap.change)
    changes.merge_from_dict(args.cfg_options)
    bases = [args.config, *args.others]
    remarks = list(swap.remarks)
    new = write_config(
        args.out,
        bases,
        changes.to_dict(),
        'tools/swap_backbone.py',
        accept=lambda written: remarks.extend(verify(cfg, written)),
    )
    print(f"{args.out}: {backbone} in the place of {cfg.model.get('type')}'s backbone")
    for remark in remarks:
        print(f'note: {remark}')
    if args.check:
        check(args, cfg, new)


if __name__ == '__main__':
    main()
