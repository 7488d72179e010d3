"""Files that take their place only when they are whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
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
def whole_files(path: str | os.PathLike, *others: str) -> Iterator[Path]:
    """As :func:`whole_file`, for a file with companions of other suffixes, all in a folder apart.

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
