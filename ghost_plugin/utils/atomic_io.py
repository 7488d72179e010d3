"""Files that are moved into place only when they are complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(path: str | os.PathLike, *others: str) -> None:
    """Raise if a file cannot be written, before work is done that would be lost.

    Args:
        path: A file to write or overwrite.
        others: Suffixes of its companions.

    Raises:
        OSError: It is a folder, its parent is a file, or there are no rights to write.
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
    """Yield a temporary path; it replaces ``path`` when all of it is on the disk."""
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
    """As :func:`atomic_write`, for a file with companions of other suffixes.

    Args:
        path: The file that is read first; it is moved into place last.
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
