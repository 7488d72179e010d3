#!/usr/bin/env python3
"""Put a GhostNet into a config of MMDetection or MMPretrain; neck and head follow by themselves."""

import argparse

from _cli import needs, tool

needs('mmengine', 'mmcv')

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger

from ghost_plugin.integrations.swap import load_config, swap_backbone, write_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='file, or mmdet::... / mmpretrain::... of the installed one')
    parser.add_argument('--backbone', default='ghost_plugin.GhostNet', help='registered type')
    parser.add_argument('--width', type=float, help='multiplier of the channels')
    parser.add_argument('--out-indices', type=int, nargs='+', help='levels 0..5 to take')
    parser.add_argument('--output-stride', type=int, help='8, 16 or 32')
    parser.add_argument('--frozen-stages', type=int, help='-1 none, 0 stem, k up to level k')
    parser.add_argument('--with', nargs='+', default=[], dest='others', metavar='CONFIG',
                        help='more configs to inherit: data, schedule, runtime')  # fmt: skip
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        help='more changes, as in OpenMMLab: key.sub=value')  # fmt: skip
    parser.add_argument('-o', '--out', required=True, help='config to write')
    return parser.parse_args()


@tool
def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    names = ('width', 'out_indices', 'output_stride', 'frozen_stages')
    chosen = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    cfg = load_config(args.config)
    change = swap_backbone(cfg, args.backbone, **chosen)
    note = f'Made by tools/swap_backbone.py from {args.config}'
    changes = Config({'model': change})
    changes.merge_from_dict(args.cfg_options)
    write_config(args.out, [args.config, *args.others], changes.to_dict(), note)
    fitted = {part: values for part, values in change.items() if part != 'backbone'}
    print(
        f'{args.out}: {args.backbone} at levels {change["backbone"].get("out_indices")}, {fitted}'
    )


if __name__ == '__main__':
    main()
