#!/usr/bin/env python3
"""Turn a Pascal VOC folder or zip, in any arrangement, into images and boxes in COCO's format.

Writes OUT/<split>/ and OUT/<split>.json. What was clipped, renamed or left out is counted and
named; an annotation's image is the one beside it, else the nearest of its name.
"""

import argparse
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from math import inf, isfinite
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

from _files import (
    IMAGES,
    SPLITS,
    Problems,
    first_names,
    free_name,
    image_size,
    list_files,
    make_folder,
    split_in_path,
    summaries,
)

from ghost_plugin.cli.errors import tool

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
# Class, and CORNERS in pixels, counted from 1, the last included.
Annotation = tuple[str, list[float]]
Row = tuple[Path, tuple[int, int], list]  # image, its (width, height), its boxes


def read_annotations(
    source: Path, files: list[Path], problems: Problems
) -> Iterator[tuple[Path, Path, list[Annotation]]]:
    """Yield each readable annotation, its image and its objects; note all others."""
    images = [path for path in files if path.suffix.lower() in IMAGES]
    file_names, objects = {}, {}
    for path in (path for path in files if path.suffix.lower() == '.xml'):
        try:
            file_names[path], objects[path] = read(source / path)
        except ValueError as error:
            problems['annotations that cannot be read, left out'].append(f'{path} ({error})')
    paired = match_images(file_names, images)
    note = {
        'annotations without an image, left out': file_names.keys() - paired.keys(),
        'images without a usable annotation, left out': {*images} - {*paired.values()},
    }
    problems.update({kind: sorted(map(str, paths)) for kind, paths in note.items() if paths})
    yield from ((path, image, objects[path]) for path, image in paired.items())


def read(path: Path) -> tuple[str, list[Annotation]]:
    """Read the file name of the image ('' if there is none) and the objects.

    Raises:
        ValueError: No XML, or an object lacks its class or a corner. Left out alone, it would
            count as background.
    """
    text = path.read_text(errors='replace')
    if '<!DOCTYPE' in text or '<!ENTITY' in text:  # a few lines can swell to fill the memory
        raise ValueError('it declares entities, which annotations do not need')
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    objects = [
        parse_object(element, number) for number, element in enumerate(tree.iter('object'), 1)
    ]
    return PureWindowsPath(tree.findtext('filename', '').strip()).name, objects


def parse_object(element: ElementTree.Element, number: int) -> Annotation:
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


def match_images(file_names: dict[Path, str], images: list[Path]) -> dict[Path, Path]:
    """The image of each annotation that has one, sorted; folders may share file names.

    Args:
        file_names: Image name inside each annotation, by the path of the annotation.
        images: Paths, relative to the same folder.

    Raises:
        ValueError: Several fit equally well.
    """
    named, takers = defaultdict(list), defaultdict(list)
    for image in images:
        named[image.stem].append(image)
    for path, name in file_names.items():
        # Masks have the names of their images, too, but for the suffix.
        fitting = [p for p in named[path.stem] if p.name == name] or named[path.stem]
        if fitting:
            takers[nearest(path, fitting)].append(path)
    return dict(sorted((nearest(image, paths), image) for image, paths in takers.items()))


def nearest(path: Path, others: list[Path]) -> Path:
    """The path in the same folder, else the one that shares the most leading folders."""

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


def split_lists(source: Path, files: list[Path]) -> list[tuple[Path, str, set[str]]]:
    """(folder that it is about, split, names) of each list in ImageSets/Main."""
    found = []
    for path in files:
        inner = path.parts[-3:-1] == ('ImageSets', 'Main') and path.suffix == '.txt'
        if inner and path.stem in SPLITS and path.stem != 'trainval':
            lines = (source / path).read_text(errors='replace').splitlines()
            names = {line.split()[0] for line in lines if line.strip()}
            found.append((path.parents[2], path.stem, names))
    return found


def split_of(path: Path, lists: list[tuple[Path, str, set[str]]]) -> str:
    """The split of ImageSets, else of a folder of that name, else train."""
    for folder, split, names in lists:
        if path.is_relative_to(folder) and path.stem in names:
            return split
    return split_in_path(path) or 'train'


def boxes_of(
    objects: list[Annotation], size: tuple[int, int], name: str, problems: Problems
) -> list:
    """The (class, [x, y, w, h]) pairs in pixels; VOC counts from 1 and includes the last pixel."""
    found = []
    for kind, corners in objects:
        left, top, right, bottom = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
        inside = (max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1]))
        width, height = inside[2] - inside[0], inside[3] - inside[1]
        if width <= 0 or height <= 0:
            problems['boxes outside the image or without area, dropped'].append(name)
            continue
        # Sets that count from 0 reach over by one; that is not worth a report.
        over = max(-left, -top, right - size[0], bottom - size[1])
        if over > 1:
            problems['boxes over the edge, clipped'].append(name)
        found.append((kind, [*inside[:2], width, height]))
    return found


def voc(source: Path, out: Path, problems: Problems, classes: list[str] | None) -> dict[str, int]:
    """Turn every XML with an image into COCO's format; returns the images per split."""
    files = list_files(source, problems)
    lists = split_lists(source, files)
    found: dict[str, list[Row]] = defaultdict(list)
    for path, image, objects in read_annotations(source, files, problems):
        size = image_size(source / image)
        if size is None:
            problems['broken images, left out'].append(str(image))
            continue
        boxes = boxes_of(objects, size, str(path), problems)
        found[split_of(path, lists)].append((source / image, size, boxes))
    known = known_classes(found, classes, problems)
    if set(found) == {'train'}:
        print('no images to validate: list them in ImageSets/Main/val.txt, or in a folder val')
    for split, rows in found.items():
        write_coco(out, split, rows, known, problems)
    return {split: len(rows) for split, rows in found.items()}


def known_classes(
    found: dict[str, list[Row]], classes: list[str] | None, problems: Problems
) -> list[str]:
    """``classes``, else the names of all boxes, sorted."""
    names = sorted({name for rows in found.values() for *_, boxes in rows for name, _ in boxes})
    if found and not names:
        raise ValueError('; '.join(['no annotation holds a usable box', *summaries(problems)]))
    if found and classes and not set(names) & set(classes):
        raise ValueError(
            f'no box is of --classes {" ".join(classes)}; there are {first_names(names, 20)}'
        )
    if names:
        print(f'classes: {", ".join(classes or names)}')
    if absent := [name for name in classes or () if found and name not in names]:
        print(f'in no image: {", ".join(absent)}; there are {first_names(names, 20)}')
    return classes or names


def write_coco(out: Path, split: str, rows: list, classes: list[str], problems: Problems) -> None:
    """Copy the images of a split and write its boxes."""
    (out / split).mkdir(exist_ok=True)
    images, annotations = [], []
    for number, (image, (width, height), boxes) in enumerate(rows):
        copy = free_name(out / split / image.name, problems)
        shutil.copyfile(image, copy)
        images.append({'id': number, 'file_name': copy.name, 'width': width, 'height': height})
        for name, box in boxes:
            if name not in classes:
                problems['boxes of other classes, dropped'].append(image.name)
                continue
            # COCO's evaluation takes an id of 0 for no match.
            one = {
                'id': len(annotations) + 1,
                'image_id': number,
                'category_id': classes.index(name),
            }
            annotations.append({**one, 'bbox': box, 'area': box[2] * box[3], 'iscrowd': 0})
    categories = [{'id': i, 'name': name} for i, name in enumerate(classes)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (out / f'{split}.json').write_text(json.dumps(content))


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='folder or zip')
    parser.add_argument('out', type=Path, help='folder to make')
    parser.add_argument('--classes', nargs='+', help='in order; all that occur without it')
    parser.add_argument('--force', action='store_true', help='make a folder anew that is there')
    args = parser.parse_args()
    if len(set(args.classes or [])) < len(args.classes or []):
        raise ValueError(f'--classes must be different, got {" ".join(args.classes)}')
    lacking = 'usable pair of an image and a VOC .xml file'
    make_folder(args, partial(voc, classes=args.classes), lacking)


if __name__ == '__main__':
    main()
