"""Pascal VOC annotations: what stands in them, and which picture each one is of."""

import os
from collections import defaultdict
from collections.abc import Iterator
from math import inf, isfinite
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

from _pictures import PICTURES, Problems

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
Thing = tuple[str, list[float]]  # class and CORNERS in pixels, counted from 1, the last included


def annotated(
    source: Path, files: list[Path], problems: Problems
) -> Iterator[tuple[Path, Path, list[Thing]]]:
    """Each annotation that can be read, its picture and its things; all others are noted."""
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    told, things = {}, {}
    for path in (path for path in files if path.suffix.lower() == '.xml'):
        try:
            told[path], things[path] = read(source / path)
        except ValueError as error:
            problems['annotations that cannot be read, left out'].append(f'{path} ({error})')
    paired = pairs(told, pictures)
    note = {
        'annotations without a picture, left out': told.keys() - paired.keys(),
        'pictures without a usable annotation, left out': {*pictures} - {*paired.values()},
    }
    problems.update({kind: sorted(map(str, paths)) for kind, paths in note.items() if paths})
    yield from ((path, picture, things[path]) for path, picture in paired.items())


def read(path: Path) -> tuple[str, list[Thing]]:
    """Name of the picture as the file tells it ('' if it does not), and its things.

    Raises:
        ValueError: No XML, or a thing lacks its class or a corner. Without that one the picture
            would teach that nothing is there.
    """
    text = path.read_text(errors='replace')
    if '<!DOCTYPE' in text or '<!ENTITY' in text:  # a few lines can swell to fill the memory
        raise ValueError('it declares entities, which annotations do not need')
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    things = [thing(element, number) for number, element in enumerate(tree.iter('object'), 1)]
    return PureWindowsPath(tree.findtext('filename', '').strip()).name, things


def thing(element: ElementTree.Element, number: int) -> Thing:
    """Class and corners of the ``number``-th object."""
    name = element.findtext('name', '').strip()
    if not name:
        raise ValueError(f'object {number} has no name')
    texts = [element.findtext(f'bndbox/{corner}', '').strip() for corner in CORNERS]
    for corner, text in zip(CORNERS, texts, strict=True):
        if not isfinite(as_number(text)):
            raise ValueError(f'object {number} has {corner} {text!r}')
    return name, [as_number(text) for text in texts]


def as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return inf


def pairs(told: dict[Path, str], pictures: list[Path]) -> dict[Path, Path]:
    """The picture of each annotation that has one, sorted; names may come again in other folders.

    Args:
        told: Path of each annotation, and the picture's name that :func:`read` found in it.
        pictures: Paths, relative to the same folder.

    Raises:
        ValueError: Several fit equally well.
    """
    named, takers = defaultdict(list), defaultdict(list)
    for picture in pictures:
        named[picture.stem].append(picture)
    for path, name in told.items():
        # Masks have the names of their pictures, too, but for the suffix.
        fitting = [p for p in named[path.stem] if p.name == name] or named[path.stem]
        if fitting:
            takers[nearest(path, fitting)].append(path)
    return dict(sorted((nearest(picture, paths), picture) for picture, paths in takers.items()))


def nearest(path: Path, others: list[Path]) -> Path:
    """The one in the same folder, else the one that shares the most folders from the top."""

    def nearness(other: Path) -> tuple[bool, int]:
        common = os.path.commonpath([path.parent, other.parent])
        return path.parent == other.parent, len(Path(common).parts)

    best = max(map(nearness, others))
    found = [other for other in others if nearness(other) == best]
    if len(found) > 1:
        raise ValueError(
            f'{path} fits {found[0]} and {found[1]} alike; keep one, or put each beside its own'
        )
    return found[0]
