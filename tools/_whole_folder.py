"""A folder that takes its place only when all of it was written, and never that of its source."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(target: Path, force: bool, source: Path | None = None) -> Iterator[Path]:
    """A folder to write into that becomes ``target`` only when all of it was written.

    Raises:
        FileExistsError: ``target`` holds something and ``force`` is false.
        ValueError: ``source``, which is read, is ``target``, or one holds the other.
    """
    place = target.resolve()  # a link to a folder stays, what it leads to is made anew
    partial = place.with_name(f'{place.name}.partial')
    for taken in (place, partial) if source else ():
        _apart(source.resolve(), taken)
    if place.exists() and any(place.iterdir()) and not force:
        raise FileExistsError(f'{target} is there already; --force makes it anew')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        with tempfile.TemporaryDirectory(prefix=f'.{place.name}.', dir=place.parent) as old:
            if place.exists():
                place.rename(Path(old) / place.name)
            partial.rename(place)
    except BaseException:  # Ctrl-C, too
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _apart(source: Path, taken: Path) -> None:
    """Refuse to replace what is read, or to write among it."""
    if source.is_relative_to(taken) or taken.is_relative_to(source):
        raise ValueError(
            f'{source} is read and {taken} written anew, so neither may be or hold the other; '
            f'give another output, such as {source.with_name(source.stem + "_prepared")}'
        )
