#!/usr/bin/env python3
"""Turn a Pascal VOC folder or zip, in any arrangement, into pictures and boxes in COCO's format.

Writes OUT/<split>/ and OUT/<split>.json. What was clipped or left out is counted and named.
"""

import argparse
import json
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from _cli import tool
from _pictures import PICTURES, SPLITS, Problems, report, size_of, unpack
from _whole_folder import whole_folder


def split_of(path: Path, lists: dict[str, set[str]]) -> str:
    """By ImageSets' lists, else by a folder of that name, else train."""
    for split, names in lists.items():
        if path.stem in names:
            return split
    named = [part.lower() for part in path.parts if part.lower() in SPLITS]
    return named[-1] if named else 'train'


def boxes_of(
    tree: ElementTree.Element, size: tuple[int, int], name: str, problems: Problems
) -> list:
    """(class, [x, y, w, h]) pairs in pixels; VOC counts corners from 1 and includes the last."""
    found = []
    for thing in tree.iter('object'):
        corners = [
            float(thing.findtext(f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax')
        ]
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
        found.append((thing.findtext('name'), [*inside[:2], width, height]))
    return found


def voc(source: Path, out: Path, classes: list[str] | None, problems: Problems) -> dict[str, int]:
    """Turn every XML with a picture into COCO's format; returns the pictures per split."""
    pictures = {p.stem: p for p in sorted(source.rglob('*')) if p.suffix.lower() in PICTURES}
    lists = {
        p.stem: {line.split()[0] for line in p.read_text().splitlines() if line.strip()}
        for p in sorted(source.rglob('ImageSets/Main/*.txt'))
        if p.stem in SPLITS and p.stem != 'trainval'
    }
    found: dict[str, list] = defaultdict(list)
    for xml in sorted(source.rglob('*.xml')):
        text = xml.read_text(errors='replace')
        if '<!DOCTYPE' in text or '<!ENTITY' in text:
            raise ValueError(f'{xml} declares entities, which annotations do not need; refused')
        picture = pictures.get(xml.stem)
        size = size_of(picture) if picture else None
        if size is None:
            kind = 'broken pictures' if picture else 'annotations without a picture'
            problems[f'{kind}, left out'].append(xml.name)
            continue
        try:
            boxes = boxes_of(ElementTree.fromstring(text), size, xml.name, problems)
        except (ElementTree.ParseError, TypeError, ValueError):
            problems['annotations that cannot be read, left out'].append(xml.name)
            continue
        found[split_of(xml.relative_to(source), lists)].append((picture, size, boxes))
    known = classes or sorted({name for rows in found.values() for *_, b in rows for name, _ in b})
    for split, rows in found.items():
        write_coco(out, split, rows, known, problems)
    print(f'classes: {", ".join(known)}')
    return {split: len(rows) for split, rows in found.items()}


def write_coco(out: Path, split: str, rows: list, classes: list[str], problems: Problems) -> None:
    """Copy the pictures of a split and write its boxes."""
    (out / split).mkdir(exist_ok=True)
    images, annotations = [], []
    for number, (picture, (width, height), boxes) in enumerate(rows):
        shutil.copyfile(picture, out / split / picture.name)
        images.append({'id': number, 'file_name': picture.name, 'width': width, 'height': height})
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
    problems: Problems = defaultdict(list)
    whole = whole_folder(args.out, args.force, args.source)
    with whole as out, tempfile.TemporaryDirectory(dir=out) as scratch:
        counts = voc(unpack(args.source, Path(scratch)), out, args.classes, problems)
        if not counts:
            raise ValueError(f'no usable pair of a picture and a VOC .xml file in {args.source}')
    report(args.out, counts, problems)


if __name__ == '__main__':
    main()
