"""Options of OpenMMLab's own tools."""

import argparse
import os
from pathlib import Path

from .errors import fail


def parse_run(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add what OpenMMLab's own tools take for a run, and parse."""
    add = parser.add_argument
    add('--work-dir', help="logs and checkpoints; else the config's work_dir, work_dirs/CONFIG")
    add('--cfg-options', nargs='+', action=key_values(), default={}, help='key.sub=value')
    add('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='of jobs')
    add('--local_rank', '--local-rank', type=int, default=0, help='set by torchrun')
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    tensors_only()
    args.cfg_options |= {'work_dir': args.work_dir} if args.work_dir else {}
    args.work_dir = Path(args.work_dir or f'work_dirs/{Path(args.config).stem}')
    return args


def key_values() -> type[argparse.Action]:
    """MMEngine's action for KEY=VALUE, with a sentence where there is no ``=``."""
    from mmengine.config import DictAction  # other tools work without OpenMMLab

    class KeyValues(DictAction):
        def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: list[str],
            option: str | None = None,
        ) -> None:
            for value in values:
                if '=' not in value:
                    fail(f'{option} takes KEY=VALUE, such as train_cfg.max_epochs=1, got {value!r}')
            super().__call__(parser, namespace, values, option)

    return KeyValues


def tensors_only() -> None:
    """Let no checkpoint run code: mmengine loads it once more, unguarded, where a guard refuses.

    Older ones know no list of what their own files hold and could not resume; they stay.
    """
    from mmengine.runner import checkpoint

    if hasattr(checkpoint, 'get_torch_safe_globals'):
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
