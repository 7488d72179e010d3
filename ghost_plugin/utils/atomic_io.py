"""Files that take their place only when they are whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(path: str | os.PathLike, *others: str) -> None:
    """Refuse a place where no file can be put, before work is done that would be lost.

    Args:
        path: A file to write, or write anew.
        others: Suffixes of its companions.

    Raises:
        OSError: A folder has its name; it is to lie in a file, or where nothing may be written.
    """
    path = Path(path)
    for target in (path, *(path.with_suffix(suffix) for suffix in others)):
        if target.is_dir():
            raise IsADirectoryError(f'{str(target)!r} is a folder; give the name of a file')
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise NotADirectoryError(f'{str(path)!r} cannot be written: {str(above)!r} is no folder')
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f'{str(path)!r} cannot be written: no rights in {str(above)!r}')


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A file to write that takes its place only when all of it is on the disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    try:
        yield partial
        _place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_write_all(path: str | os.PathLike, *others: str) -> Iterator[Path]:
    """As :func:`atomic_write`, for a file with companions of other suffixes, all in a folder apart.

    Args:
        path: Of the file that is read first; it takes its place last.
        others: Suffixes of the companions, such as ``'.bin'``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        yield folder / path.name
        for target in (*(path.with_suffix(suffix) for suffix in others), path):
            _place(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(partial: Path, path: Path) -> None:
    with partial.open('rb+') as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
