#!/usr/bin/env python3
"""Turn a Pascal VOC folder or zip, in any arrangement, into pictures and boxes in COCO's format.

Writes OUT/<split>/ and OUT/<split>.json. What was clipped, renamed or left out is counted and
named; an annotation's picture is the one beside it, else the nearest of its name.
"""

import argparse
import json
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path

from _pictures import (
    SPLITS,
    Problems,
    files_in,
    free,
    prepare,
    said,
    size_of,
    some,
    split_in,
)
from _voc import Thing, annotated

from ghost_plugin.cli.errors import tool

Row = tuple[Path, tuple[int, int], list]  # picture, its (width, height), its boxes


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
    """By ImageSets' lists, else by a folder of that name, else train."""
    for folder, split, names in lists:
        if path.is_relative_to(folder) and path.stem in names:
            return split
    return split_in(path) or 'train'


def boxes_of(things: list[Thing], size: tuple[int, int], name: str, problems: Problems) -> list:
    """(class, [x, y, w, h]) pairs in pixels; VOC counts corners from 1 and includes the last."""
    found = []
    for kind, corners in things:
        left, top, right, bottom = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
        inside = (max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1]))
        width, height = inside[2] - inside[0], inside[3] - inside[1]
        if width <= 0 or height <= 0:
            problems['boxes outside the picture or without area, dropped'].append(name)
            continue
        # Sets that count from 0 reach over by one; that is not worth a report.
        over = max(-left, -top, right - size[0], bottom - size[1])
        if over > 1:
            problems['boxes over the edge, clipped'].append(name)
        found.append((kind, [*inside[:2], width, height]))
    return found


def voc(source: Path, out: Path, problems: Problems, classes: list[str] | None) -> dict[str, int]:
    """Turn every XML with a picture into COCO's format; returns the pictures per split."""
    files = files_in(source, problems)
    lists = split_lists(source, files)
    found: dict[str, list[Row]] = defaultdict(list)
    for path, picture, things in annotated(source, files, problems):
        size = size_of(source / picture)
        if size is None:
            problems['broken pictures, left out'].append(str(picture))
            continue
        boxes = boxes_of(things, size, str(path), problems)
        found[split_of(path, lists)].append((source / picture, size, boxes))
    known = known_classes(found, classes, problems)
    for split, rows in found.items():
        write_coco(out, split, rows, known, problems)
    return {split: len(rows) for split, rows in found.items()}


def known_classes(
    found: dict[str, list[Row]], classes: list[str] | None, problems: Problems
) -> list[str]:
    """``classes``, else the names of all boxes, sorted."""
    names = sorted({name for rows in found.values() for *_, boxes in rows for name, _ in boxes})
    if found and not names:
        raise ValueError('; '.join(['no annotation holds a usable box', *said(problems)]))
    if found and classes and not set(names) & set(classes):
        raise ValueError(f'no box is of --classes {" ".join(classes)}; there are {some(names, 20)}')
    if names:
        print(f'classes: {", ".join(classes or names)}')
    if absent := [name for name in classes or () if found and name not in names]:
        print(f'in no picture: {", ".join(absent)}; there are {some(names, 20)}')
    return classes or names


def write_coco(out: Path, split: str, rows: list, classes: list[str], problems: Problems) -> None:
    """Copy the pictures of a split and write its boxes."""
    (out / split).mkdir(exist_ok=True)
    images, annotations = [], []
    for number, (picture, (width, height), boxes) in enumerate(rows):
        copy = free(out / split / picture.name, problems)
        shutil.copyfile(picture, copy)
        images.append({'id': number, 'file_name': copy.name, 'width': width, 'height': height})
        for name, box in boxes:
            if name not in classes:
                problems['boxes of other classes, dropped'].append(picture.name)
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
    lacking = 'usable pair of a picture and a VOC .xml file'
    prepare(args, partial(voc, classes=args.classes), lacking)


if __name__ == '__main__':
    main()
