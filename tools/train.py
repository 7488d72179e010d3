#!/usr/bin/env python3
"""Train a config of MMDetection or MMPretrain; arguments as in their own tools/train.py."""

import argparse
from pathlib import Path

from ghost_plugin.cli.errors import USER_ERRORS, fail, fail_in, needs, quiet_workers
from ghost_plugin.cli.openmmlab_options import parse_run

needs('mmengine', 'mmcv')

from mmengine.runner import Runner

from ghost_plugin.integrations.openmmlab.runner_setup import (
    check_checkpoint,
    close_distributed,
    explain_error,
    launch,
    load_run,
    scale_learning_rate,
    set_resume,
    use_atomic_checkpoints,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume', nargs='?', const='auto', help='go on from a checkpoint, or from the last one'
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='by the real batch size')
    return parse_run(parser)


def main() -> None:
    args = parse_args()
    quiet_workers()
    try:
        cfg = load_run(args.config, args.work_dir, args.cfg_options)
        args.work_dir = Path(cfg.work_dir)
        launch(cfg, args.launcher)
        if args.amp:
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
        if args.auto_scale_lr:
            scale_learning_rate(cfg)
        use_atomic_checkpoints(cfg)
        if args.resume:
            set_resume(cfg, args.resume)
        if cfg.get('load_from'):
            check_checkpoint(cfg.load_from, cfg.get('resume', False))
        Runner.from_cfg(cfg).train()
        close_distributed()
    except KeyboardInterrupt:
        again = f'python tools/train.py {args.config} --work-dir {args.work_dir} --resume'
        fail(f'interrupted, finished epochs are kept; go on with: {again}')
    # torch reports a full disk as a RuntimeError and a label beyond the classes as an IndexError
    except (*USER_ERRORS, RuntimeError, IndexError) as error:
        fail_in(args.work_dir, explain_error(error))


if __name__ == '__main__':
    main()
