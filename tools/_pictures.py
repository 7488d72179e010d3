"""What the data tools share: opening a folder or zip, reading pictures, saying what was mended."""

import zipfile
from pathlib import Path

from _cli import needs

needs('PIL')

from PIL import Image

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
SPLITS = ('train', 'val', 'test', 'trainval', 'valid', 'validation')
Problems = dict[str, list[str]]


def unpack(source: Path, to: Path) -> Path:
    """The folder behind a folder or a zip; no name in a zip may leave ``to``."""
    if source.is_dir():
        return source
    if not source.exists():
        raise FileNotFoundError(f'no folder or zip at {source}')
    if not zipfile.is_zipfile(source):
        raise ValueError(f'{source} is neither a folder nor a zip')
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            if not (to / name).resolve().is_relative_to(to.resolve()):
                raise ValueError(f'{source} holds {name!r}, which points outside; not unpacked')
        archive.extractall(to)
    return to


def size_of(picture: Path) -> tuple[int, int] | None:
    """(width, height) in pixels of a picture that can be read to its end, else None."""
    try:
        with Image.open(picture) as image:
            image.load()
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def report(out: Path, counts: dict[str, int], problems: Problems) -> None:
    """Say what was left out or clipped, and what there is now."""
    for kind, names in problems.items():
        more = ' ...' if len(names) > 3 else ''
        print(f'{len(names)} {kind}: {", ".join(names[:3])}{more}')
    print(f'{out}: ' + ', '.join(f'{n} {split}' for split, n in sorted(counts.items())))
