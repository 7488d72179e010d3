"""User errors on the command line: one line on standard error and exit status 2."""

import functools
import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

from ..utils.optional import require

# Raised by OpenMMLab, torch and this package for bad input; anything else is a bug.
USER_ERRORS = (
    ValueError, TypeError, KeyError, OSError, ImportError, AssertionError, pickle.UnpicklingError
)  # fmt: skip
INTERRUPTED = 'interrupted; finished parts are kept, the same command continues'
Row = TypeVar('Row')


def debugging() -> bool:
    """True if tracebacks are to be shown: ``--debug`` or ``GHOST_DEBUG=1``."""
    return bool(os.environ.get('GHOST_DEBUG'))


def needs(*names: str) -> None:
    """Exit with status 2 and an installation hint unless every package can be imported."""
    try:
        require(*names)
    except ImportError as error:
        fail(error)


def fail(message: object) -> NoReturn:
    """Print one line and exit with status 2."""
    print(f'error: {message}', file=sys.stderr, flush=True)
    # Data loader threads that are shut down would add messages of their own.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(2)


def fail_in(folder: Path, error: BaseException) -> NoReturn:
    """Exit as :func:`fail` does, and write the traceback to ``error.txt``.

    Args:
        folder: Folder of the run, created if needed.
        error: The exception being handled.
    """
    note = ''
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'error.txt').write_text(traceback.format_exc())
        note = f' (details: {folder / "error.txt"})'
    except OSError:
        pass  # the error may be a full or read-only disk
    fail(one_line(error) + note)


def one_line(error: BaseException) -> str:
    """The last line of an error, which is the cause where frameworks wrap one in another."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to drop the guard
        return 'a checkpoint is damaged, or holds more than tensors and plain values; not loaded'
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines or not error.__traceback__:
        return lines[-1] if lines else type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1]  # a bare assertion has no message
    return f'{type(error).__name__}: {place.line} ({place.filename}:{place.lineno})'


def quiet_workers() -> None:
    """Silence data loader workers whose parent process was interrupted."""
    report = sys.excepthook

    def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        worker = multiprocessing.parent_process() is not None
        if not (worker and issubclass(kind, ConnectionError | EOFError)):
            report(kind, error, trace)

    sys.excepthook = _hook


def named(part: str, rows: dict[str, Row]) -> dict[str, Row]:
    """Rows of a study whose names contain a text; exits if there are none.

    Args:
        part: Text to search for.
        rows: All rows by name.
    """
    found = {name: row for name, row in rows.items() if part in name}
    return found or fail(f'no name holds {part!r}; the names are: {"; ".join(rows)}')


def tool(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a ``main`` so that user errors end in one line, unless :func:`debugging`."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except KeyboardInterrupt:
            fail(INTERRUPTED)
        except USER_ERRORS as error:
            if debugging():
                raise
            fail(one_line(error))

    return run
