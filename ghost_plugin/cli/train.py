"""The commands ``train`` and ``test``: OpenMMLab configs, with the arguments of its own tools."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils import optional
from ..utils.atomic_io import check_writable
from .errors import INTERRUPTED, USER_ERRORS, debugging, fail, fail_in, quiet_workers
from .options import Command, Parser

optional.require('mmengine', 'mmcv')

from mmengine.config import Config, DictAction
from mmengine.runner import Runner, checkpoint

from ..integrations.openmmlab.runner_setup import (
    allow_arrays,
    check_checkpoint,
    close_distributed,
    explain_error,
    launch,
    load_run,
    scale_learning_rate,
    set_resume,
    use_atomic_checkpoints,
)


class KeyValues(DictAction):
    """MMEngine's action for KEY=VALUE; exits with a sentence where there is no ``=``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        for value in values or ():
            if '=' not in value:
                fail(
                    f'{option_string} takes KEY=VALUE, such as train_cfg.max_epochs=1, '
                    f'got {value!r}'
                )
        super().__call__(parser, namespace, values, option_string)


def _add_run(parser: Parser) -> None:
    add = parser.add_argument
    add('--work-dir', help="for logs and checkpoints; the config's, else work_dirs/CONFIG")
    add('--cfg-options', nargs='+', action=KeyValues, default={}, help='key.sub=value')
    add(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='starts the processes of several GPUs',
    )
    add('--local_rank', '--local-rank', type=int, default=0, help='set by torchrun')


def _prepare(args: argparse.Namespace, mode: str) -> Config:
    """The config of a run with all changes; ``args.work_dir`` becomes its folder."""
    cfg = load_run(args.config, args.work_dir, args.cfg_options, mode=mode)
    args.work_dir = Path(cfg.work_dir)
    launch(cfg, args.launcher)
    return cfg


def _set_defaults(args: argparse.Namespace) -> None:
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # No checkpoint may run code: mmengine would load it once more, unguarded, after a refusal.
    # Versions without a list of their own classes could not resume then and stay as they are.
    if hasattr(checkpoint, 'get_torch_safe_globals'):
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
        allow_arrays()
    args.cfg_options |= {'work_dir': args.work_dir} if args.work_dir else {}
    args.work_dir = Path(args.work_dir or f'work_dirs/{Path(args.config).stem}')


def add_train(parser: Parser) -> None:
    """Add the options of ``train``."""
    add = parser.add_argument
    add('config', help='config file')
    add('--resume', nargs='?', const='auto', help='continue from a checkpoint, or the last one')
    add('--amp', action='store_true', help='automatic mixed precision')
    add('--auto-scale-lr', action='store_true', help='scale the rate to the real batch size')
    _add_run(parser)


def train(args: argparse.Namespace) -> None:
    """Train a config."""
    _set_defaults(args)
    quiet_workers()
    try:
        cfg = _prepare(args, 'train')
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
        again = f'ghost-plugin train {args.config} --work-dir {args.work_dir} --resume'
        fail(f'interrupted, finished epochs are kept; continue with: {again}')
    # torch raises RuntimeError for a full disk and IndexError for a label beyond the classes
    except (*USER_ERRORS, RuntimeError, IndexError) as error:
        if debugging():
            raise
        fail_in(args.work_dir, explain_error(error))


def add_test(parser: Parser) -> None:
    """Add the options of ``test``."""
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file')
    add('--json', type=Path, help='file for the metrics')
    _add_run(parser)


def test(args: argparse.Namespace) -> None:
    """Test a checkpoint of a config."""
    _set_defaults(args)
    try:
        cfg = _prepare(args, 'test')
        check_checkpoint(args.checkpoint)
        if args.json:
            check_writable(args.json)
            args.json.parent.mkdir(parents=True, exist_ok=True)
        cfg.load_from = args.checkpoint
        metrics = Runner.from_cfg(cfg).test()
        if args.json:
            args.json.write_text(json.dumps(metrics, indent=1, default=float))  # numpy's, too
        close_distributed()
    except KeyboardInterrupt:
        fail(INTERRUPTED)
    except (*USER_ERRORS, RuntimeError) as error:
        if debugging():
            raise
        fail_in(args.work_dir, error)


COMMANDS = {
    'train': Command(add_train, train, """
ghost-plugin train configs/classification/ghostnet-050_digits.py
ghost-plugin train CONFIG --work-dir runs/a --resume --cfg-options train_cfg.max_epochs=3
torchrun --nproc-per-node 8 -m ghost_plugin.cli.main train CONFIG --launcher pytorch
"""),
    'test': Command(add_test, test, """
ghost-plugin test CONFIG runs/a/epoch_3.pth --json metrics.json
"""),
}  # fmt: skip
