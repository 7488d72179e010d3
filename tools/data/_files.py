"""Shared by the data scripts: folders and zips, images, reports of problems."""

import argparse
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ghost_plugin.cli.errors import needs

needs('PIL')

from PIL import Image

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
SPLITS = (
    'train', 'val', 'test', 'trainval', 'training', 'valid', 'validation', 'testing'
)  # fmt: skip
Problems = dict[str, list[str]]
Making = Callable[[Path, Path, Problems], dict[str, int]]


@contextmanager
def atomic_folder(target: Path, force: bool, source: Path | None = None) -> Iterator[Path]:
    """A folder to write into that becomes ``target`` only when the block succeeds.

    Args:
        target: Folder to make.
        force: Replace a folder that holds something.
        source: Data that is read meanwhile.

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


def unpack(source: Path, to: Path) -> Path:
    """The folder behind a folder or a zip; no name in a zip may leave ``to``."""
    if source.is_dir():
        return source
    if not source.exists():
        raise FileNotFoundError(f'no folder or zip at {source}')
    if not zipfile.is_zipfile(source):
        raise ValueError(f'{source} is neither a folder nor a zip')
    try:
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                if not (to / name).resolve().is_relative_to(to.resolve()):
                    raise ValueError(f'{source} holds {name!r}, which points outside; not unpacked')
            archive.extractall(to)
    # Truncated, damaged and encrypted files.
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise ValueError(
            f'{source} cannot be unpacked ({error}); get it again, or unpack it by other means '
            'and give the folder'
        ) from error
    return to


def list_files(source: Path, problems: Problems) -> list[Path]:
    """Paths of all files below a folder, relative to it, sorted, without hidden ones."""
    found = []
    for path in sorted(source.rglob('*')):
        inner = path.relative_to(source)
        if any(part.startswith(('.', '__MACOSX')) for part in inner.parts):
            continue
        if path.is_file():
            found.append(inner)
        elif path.is_symlink():
            problems['links that lead to no file, not followed'].append(str(inner))
    return found


def split_in_path(folder: Path) -> str:
    """The last part of a relative path that names a split, in lower case, or ''."""
    named = [part.lower() for part in folder.parts if part.lower() in SPLITS]
    return named[-1] if named else ''


def free_name(path: Path, problems: Problems) -> Path:
    """``path``, or the first of NAME-2, NAME-3, ... where another file has that name."""
    names = (path.with_stem(f'{path.stem}-{n}') for n in count(2))
    if not path.exists():
        return path
    renamed = next(name for name in names if not name.exists())
    problems['images of a name that another has, renamed'].append('/'.join(renamed.parts[-2:]))
    return renamed


def make_folder(args: argparse.Namespace, make: Making, lacking: str) -> None:
    """Make the folder ``args.out`` from ``args.source``, completely or not at all, and report it.

    Args:
        args: The command line.
        make: Called with an unpacked source, a folder to fill and the problems to extend; returns
            the number of images by split.
        lacking: Noun for the error when there are no images.
    """
    problems: Problems = defaultdict(list)
    made = atomic_folder(args.out, args.force, args.source)
    with made as out, tempfile.TemporaryDirectory(dir=out) as scratch:
        counts = make(unpack(args.source, Path(scratch)), out, problems)
        if not counts:
            raise ValueError('; '.join([f'no {lacking} in {args.source}', *summaries(problems)]))
    report(args.out, counts, problems)


def image_size(image: Path) -> tuple[int, int] | None:
    """(width, height) in pixels of an image that can be read to its end, else None."""
    try:
        with Image.open(image) as image:
            image.load()
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def first_names(names: Iterable[object], number: int = 3) -> str:
    """The first few names, for a message."""
    names = [str(name) for name in names]
    return ', '.join(names[:number]) + (' ...' if len(names) > number else '')


def summaries(problems: Problems) -> list[str]:
    """A line for each kind of problem."""
    return [f'{len(names)} {kind}: {first_names(names)}' for kind, names in problems.items()]


def report(out: Path, counts: dict[str, int], problems: Problems) -> None:
    """Say what was left out or clipped, and what there is now."""
    made = ', '.join(f'{n} {split}' for split, n in sorted(counts.items()))
    print(*summaries(problems), f'{out}: {made}', sep='\n')
