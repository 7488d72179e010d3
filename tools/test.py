#!/usr/bin/env python3
"""Test a checkpoint of MMDetection or MMPretrain; arguments as in their own tools/test.py."""

import argparse
import json
from pathlib import Path

from ghost_plugin.cli.errors import INTERRUPTED, USER_ERRORS, fail, fail_in, needs
from ghost_plugin.cli.openmmlab_options import parse_run

needs('mmengine', 'mmcv')

from mmengine.runner import Runner

from ghost_plugin.integrations.openmmlab.runner_setup import (
    check_checkpoint,
    close_distributed,
    launch,
    load_run,
)
from ghost_plugin.utils.atomic_io import check_writable


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--json', type=Path, help='file for the metrics')
    return parse_run(parser)


def main() -> None:
    args = parse_args()
    try:
        cfg = load_run(args.config, args.work_dir, args.cfg_options, mode='test')
        args.work_dir = Path(cfg.work_dir)
        launch(cfg, args.launcher)
        check_checkpoint(args.checkpoint)
        if args.json:
            check_writable(args.json)
            args.json.parent.mkdir(parents=True, exist_ok=True)
        cfg.load_from = args.checkpoint
        metrics = Runner.from_cfg(cfg).test()
        if args.json:
            args.json.write_text(json.dumps(metrics, indent=1))
        close_distributed()
    except KeyboardInterrupt:
        fail(INTERRUPTED)
    except (*USER_ERRORS, RuntimeError) as error:
        fail_in(args.work_dir, error)


if __name__ == '__main__':
    main()
