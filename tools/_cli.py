"""What every tool shares: one readable line and exit status 2 for what a user got wrong."""

import argparse
import functools
import importlib
import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

# What OpenMMLab, torch and our own code raise for bad input; anything else is a bug and shows.
USER_ERRORS = (
    ValueError, TypeError, KeyError, OSError, ImportError, AssertionError, pickle.UnpicklingError
)  # fmt: skip
Row = TypeVar('Row')
INTERRUPTED = 'interrupted; what was finished is kept, run the same command again to go on'


def needs(*names: str) -> None:
    """Leave with status 2 and what to install, unless every package can be imported."""
    try:
        for name in names:
            importlib.import_module(name)
    except Exception:  # broken binaries raise anything
        from ghost_plugin.utils.optional import require  # slow, and only its words are wanted

        try:
            require(*names)
        except ImportError as error:
            fail(error)


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


def fail(message: object) -> NoReturn:
    """Print one line and leave with status 2."""
    print(f'error: {message}', file=sys.stderr, flush=True)
    # Threads of data loaders that are shut down would add their own last words.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(2)


def quiet_workers() -> None:
    """Keep a data loader's worker from reporting that its interrupted parent hung up on it."""
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        worker = multiprocessing.parent_process() is not None
        if not (worker and issubclass(kind, ConnectionError | EOFError)):
            report(kind, error, trace)

    sys.excepthook = hook


def one_line(error: BaseException) -> str:
    """The last line of an error, which is the cause where frameworks wrap one in another."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to drop the guard
        return 'a checkpoint is damaged, or holds more than tensors and plain values; not loaded'
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines or not error.__traceback__:
        return lines[-1] if lines else type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1]  # a bare assertion says it by its code
    return f'{type(error).__name__}: {place.line} ({place.filename}:{place.lineno})'


def named(part: str, rows: dict[str, Row]) -> dict[str, Row]:
    """The rows of a study whose names hold ``part``; leaves when there are none."""
    found = {name: row for name, row in rows.items() if part in name}
    return found or fail(f'no name holds {part!r}; the names are: {"; ".join(rows)}')


def fail_in(folder: Path, error: BaseException) -> NoReturn:
    """As :func:`fail`; where the error came from goes into a file of the run's folder."""
    note = ''
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'error.txt').write_text(traceback.format_exc())
        note = f' (details: {folder / "error.txt"})'
    except OSError:
        pass  # a full or read-only disk may be what is being reported
    fail(one_line(error) + note)


def tool(main: Callable[[], None]) -> Callable[[], None]:
    """Turn a user's errors into one line; ``GHOST_DEBUG=1`` shows where they come from."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except KeyboardInterrupt:
            fail(INTERRUPTED)
        except USER_ERRORS as error:
            if os.environ.get('GHOST_DEBUG'):
                raise
            fail(one_line(error))

    return run
