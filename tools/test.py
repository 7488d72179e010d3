#!/usr/bin/env python3
"""Test a checkpoint of MMDetection or MMPretrain; arguments as in their own tools/test.py."""

import argparse
import json
import os
from pathlib import Path

from _cli import USER_ERRORS, fail_in
from mmengine.config import DictAction
from mmengine.runner import Runner

from ghost_plugin.integrations.runs import load_run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='logs; work_dirs/<config> without it')
    parser.add_argument('--json', type=Path, help='file for the metrics')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key.sub=value')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torchrun')
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    args = parse_args()
    work_dir = Path(args.work_dir or f'work_dirs/{Path(args.config).stem}')
    try:
        cfg = load_run(args.config, work_dir, args.cfg_options)
        cfg.launcher = args.launcher
        if not os.path.isfile(args.checkpoint):
            raise FileNotFoundError(f'no checkpoint at {args.checkpoint!r}')
        cfg.load_from = args.checkpoint
        metrics = Runner.from_cfg(cfg).test()
        if args.json:
            args.json.write_text(json.dumps(metrics, indent=1))
    except (*USER_ERRORS, RuntimeError) as error:
        fail_in(work_dir, error)


if __name__ == '__main__':
    main()
