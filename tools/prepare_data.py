#!/usr/bin/env python3
"""Bring Pascal VOC boxes (voc) or pictures in class folders (folder) into the form configs read.

A VOC corner counts pixels from 1 and belongs to its box: xmin..xmax becomes x = xmin - 1 and
w = xmax - xmin + 1 in COCO's format, in pixels. Equal corners are a click, not a box, and go.
``difficult`` objects get ``iscrowd`` 0 and ``ignore`` 1: mmdet's CocoDataset does not train on
them, while COCOeval, which asks for ``iscrowd`` alone, still counts them. An XML and its picture
share the name before the dot; splits come from ImageSets/Main, else from folders, else by chance.
"""

import argparse
import io
import json
import random
import sys
import warnings
import zipfile
from collections import defaultdict
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from _cli import one_line, tool, whole_folder
from PIL import Image

PICTURES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # what mmpretrain lists
FORMATS = ('JPEG', 'PNG', 'PPM', 'BMP', 'TIFF', 'WEBP')  # no EPS, which would run ghostscript
# A name in two lists is rather tested than learnt, so the test list is read first.
LISTS = ('test', 'val', 'train', 'trainval')
SPLITS = dict(zip(LISTS, LISTS, strict=True)) | {'valid': 'val', 'validation': 'val'}
ROLES = 'annotations annotation xml xmls labels jpegimages images image imgs img imagesets main'


class PlainTree(ElementTree.TreeBuilder):
    def doctype(self, *_: object) -> None:  # entities of any encoding are declared in there
        raise ValueError('DOCTYPE is refused')


def open_source(src: Path) -> dict:
    """What reads each file of a zip or folder, by its path in there; hidden ones are skipped."""
    if not src.exists():
        raise FileNotFoundError(f'no zip or folder at {src}')
    if src.is_dir():
        paths = (path for path in src.rglob('*') if path.is_file())
        found = {PurePosixPath(path.relative_to(src).as_posix()): path.read_bytes for path in paths}
    elif not zipfile.is_zipfile(src):
        raise ValueError(f'{src} is neither a folder nor a whole zip')
    else:
        archive, found = zipfile.ZipFile(src), {}
        for info in archive.infolist():
            path = PurePosixPath(info.filename.replace('\\', '/'))
            if path.is_absolute() or '..' in path.parts or info.filename[1:2] == ':':
                raise ValueError(f'{src} is refused: {info.filename!r} leads out of the zip')
            found |= {} if info.is_dir() else {path: partial(archive.read, info)}
    hidden = ('.', '__MACOSX')
    return {p: found[p] for p in sorted(found) if not any(x.startswith(hidden) for x in p.parts)}


def shown(items: list):
    """The items, with a progress bar where somebody watches and rich is there."""
    try:
        from rich.progress import track
    except ImportError:
        return items
    return track(items, 'pictures', transient=True) if sys.stdout.isatty() else items


def copy(path: PurePosixPath, files: dict, folder: Path, report: dict) -> tuple | None:
    """Copy a picture that decodes to its last pixel: (name, (width, height)), None if broken."""
    try:
        data = files[path]()
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            picture.load()
            # EXIF turns 5 to 8 swap the sides when a detector loads the picture
            size = picture.size[:: -1 if picture.getexif().get(0x0112, 1) > 4 else 1]
    except Exception as error:  # decoders raise anything; a full disk is met further down
        report['broken pictures left out'].append(f'{path}: {one_line(error)}')
        return None
    name = path.name
    if (folder / name).exists():
        name = '_'.join(path.parts)
        report['pictures renamed, their name was taken'].append(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return name, size


def draw_val(groups: dict, args: argparse.Namespace) -> set:
    """A share of every group, at least one member and never all; the same for the same seed."""
    val = set()
    for key, members in groups.items():
        count = min(max(1, round(args.val_share * len(members))), len(members) - 1)
        val.update(random.Random(f'{args.seed} {key}').sample(members, count))
    return val


def base(path: PurePosixPath) -> tuple[str, ...]:
    """Folders that tell one set, split or class from another: without Annotations and the like."""
    return tuple(part for part in path.parts[:-1] if part.lower() not in ROLES.split())


def split_of(folders: tuple[str, ...]) -> str | None:
    return next((SPLITS[part.lower()] for part in folders if part.lower() in SPLITS), None)


def listed_splits(files: dict, report: dict) -> dict:
    """{base: {stem: split}} of ImageSets/Main."""
    listed = defaultdict(dict)
    paths = [path for path in files if path.parent.name.lower() in ('main', 'imagesets')]
    for split, path in ((s, p) for s in LISTS for p in paths if p.name.lower() == f'{s}.txt'):
        for line in filter(str.strip, files[path]().decode('utf-8-sig', 'replace').splitlines()):
            name = PurePosixPath(line.strip())
            stem = name.stem if name.suffix.lower() in PICTURES else name.name
            first = listed[base(path)].setdefault(stem, split)
            if (first, split) in (('test', 'val'), ('test', 'train'), ('val', 'train')):
                report['names in two lists, the first counts'].append(f'{stem}: {first}, {split}')
    return listed


def pair_up(files: dict, args: argparse.Namespace, report: dict) -> list[tuple]:
    """(split, XML, picture) paths, in order of the XML."""
    pool, pairs, listed = {}, [], listed_splits(files, report)
    for path in (p for p in files if p.suffix.lower() in PICTURES and 'Segm' not in p.parent.name):
        if pool.setdefault((base(path), path.stem), path) != path:
            report['pictures without XML left out'].append(path)
    for path in (path for path in files if path.suffix.lower() == '.xml'):
        picture = pool.pop((base(path), path.stem), None)
        if picture is None:
            report['XML without picture left out'].append(path)
        elif base(path) in listed:
            pairs.append((listed[base(path)].pop(path.stem, None), path, picture))
        else:
            pairs.append((split_of(base(path)), path, picture))
    report['pictures without XML left out'] += pool.values()
    report['names in lists without XML or picture'] += [
        x for names in listed.values() for x in names
    ]
    if any(pair[0] for pair in pairs) or not pairs:
        report['pictures in no split left out'] += [pair[2] for pair in pairs if not pair[0]]
        return [pair for pair in pairs if pair[0]]
    val = draw_val({'all': [pair[1] for pair in pairs]}, args)
    return [('val' if pair[1] in val else 'train', *pair[1:]) for pair in pairs]


def read_xml(data: bytes) -> tuple[tuple, list[tuple]]:
    """Size as written, and (name, difficult, (xmin, ymin, xmax, ymax)) per object."""
    root = ElementTree.fromstring(data, ElementTree.XMLParser(target=PlainTree()))
    if root.tag != 'annotation':
        raise ValueError(f'<annotation> expected, got <{root.tag}>')
    found = []
    for thing in root.findall('object'):
        texts = [thing.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
        name = (thing.findtext('name') or '').strip()
        if None in texts or not name:
            raise ValueError('an <object> without name or corners')
        found.append((name, thing.findtext('difficult') == '1', tuple(map(float, texts))))
    return (root.findtext('size/width'), root.findtext('size/height')), found


def to_box(corners: tuple, size: tuple[int, int]) -> tuple[list[float] | None, str | None]:
    """COCO's [x, y, w, h] within the picture or None, and what was repaired, if anything."""
    whole = [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]
    x1, y1, x2, y2 = box = [min(max(v, 0), side) for v, side in zip(whole, size * 2, strict=True)]
    if not (corners[0] < corners[2] and corners[1] < corners[3]):  # so that NaN goes, too
        return None, 'boxes of no area dropped'
    if x2 - x1 < 1 or y2 - y1 < 1:  # mmdet skips boxes under a pixel without a word
        return None, 'boxes outside the picture dropped'
    return [x1, y1, x2 - x1, y2 - y1], None if box == whole else 'boxes clipped to the picture'


def prepare_voc(files: dict, out: Path, args: argparse.Namespace, report: dict) -> list[str]:
    """Write {split}.json and the pictures of {split}/; returns the counts as lines."""
    cocos = defaultdict(lambda: {'images': [], 'annotations': []})
    for split, path, source in shown(pair_up(files, args, report)):
        try:
            written, objects = read_xml(files[path]())
        except Exception as error:  # of the parser, the zip or the disk it is read from
            report['malformed XML left out with its picture'].append(f'{path}: {one_line(error)}')
            continue
        name, size = copy(source, files, out / split, report) or (None, None)
        if name is None:
            continue
        if any(written) and written != tuple(map(str, size)):
            report["sizes in XML that are wrong, the picture's counts"].append(path)
        images, annotations = cocos[split].values()
        images.append({'id': len(images), 'file_name': name, 'width': size[0], 'height': size[1]})
        for label, difficult, corners in objects:
            if args.classes and label not in args.classes:
                report['boxes of unknown classes dropped'].append(f'{path}: {label}')
                continue
            box, repair = to_box(corners, size)
            if repair:
                report[repair].append(f'{path}: {label} {corners}')
            if box:
                # COCOeval takes an annotation of id 0 for a miss, so these count from 1
                ids = {'id': len(annotations) + 1, 'image_id': images[-1]['id'], 'name': label}
                flags = {'iscrowd': 0, 'ignore': int(difficult)}
                annotations.append({**ids, 'bbox': box, 'area': box[2] * box[3], **flags})
    every = [annotation for coco in cocos.values() for annotation in coco['annotations']]
    classes = args.classes or sorted({annotation['name'] for annotation in every})
    for annotation in every:
        annotation['category_id'] = classes.index(annotation.pop('name'))
    for split, coco in cocos.items():
        coco['categories'] = [{'id': i, 'name': label} for i, label in enumerate(classes)]
        (out / f'{split}.json').write_text(json.dumps(coco))
    sizes = {split: (len(c['images']), len(c['annotations'])) for split, c in cocos.items()}
    lines = [f'{split}: {n} pictures, {m} boxes' for split, (n, m) in sorted(sizes.items())]
    return [*lines, f'classes = {tuple(classes)}'] if every else []


def prepare_folder(files: dict, out: Path, args: argparse.Namespace, report: dict) -> list[str]:
    """Write {split}/{class}/; a class is the folder that holds a picture. Returns the counts."""
    placed, groups, counts = {}, defaultdict(list), defaultdict(int)
    for path in (path for path in files if path.suffix.lower() in PICTURES):
        if not base(path):
            report['pictures in no class folder left out'].append(path)
        elif args.classes and base(path)[-1] not in args.classes:
            report['pictures of unknown classes left out'].append(path)
        else:
            placed[path] = split_of(base(path)[:-1])
            groups[base(path)[-1]].append(path)
    report['files that are no pictures left out'] = [
        p for p in files if p.suffix.lower() not in PICTURES
    ]
    if not any(placed.values()):
        val = draw_val(groups, args)
        placed = {path: 'val' if path in val else 'train' for path in placed}
    report['pictures in no split left out'] = [path for path, split in placed.items() if not split]
    for path, split in shown([pair for pair in placed.items() if pair[1]]):
        counts[split, base(path)[-1]] += bool(
            copy(path, files, out / split / base(path)[-1], report)
        )
    splits, classes = ({key[i] for key, n in counts.items() if n} for i in (0, 1))
    for split, name in ((s, c) for s in splits for c in classes if not counts[s, c]):
        # an empty folder keeps the numbers of the classes equal in all splits
        (out / split / name).mkdir(exist_ok=True)
        report['classes without a picture in a split'].append(f'{split}/{name}')
    sums = {split: sum(n for key, n in counts.items() if key[0] == split) for split in splits}
    return [f'{s}: {n} pictures, {len(classes)} classes' for s, n in sorted(sums.items())]


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('form', choices=('voc', 'folder'), help='Pascal VOC, or class folders')
    parser.add_argument('src', type=Path, help='zip or folder')
    parser.add_argument('out', type=Path, help='folder to make')
    parser.add_argument('--classes', nargs='+', help='in this order, others are left out')
    parser.add_argument('--val-share', type=float, default=0.1, help='when SRC has no splits')
    parser.add_argument('--seed', type=int, default=0, help='of that choice')
    parser.add_argument('--force', action='store_true', help='make a folder anew that is there')
    args = parser.parse_args()
    if not 0 < args.val_share < 1:
        raise ValueError(f'--val-share must lie between 0 and 1, got {args.val_share}')
    if args.classes and len(set(args.classes)) < len(args.classes):
        raise ValueError(f'--classes names a class twice: {" ".join(args.classes)}')
    src, out = args.src.resolve(), args.out.resolve()
    if src in (out, *out.parents) or {out, out.with_name(f'{out.name}.partial')} & {
        src,
        *src.parents,
    }:
        raise ValueError(f'OUT must lie outside of SRC and SRC outside of OUT, got {src} and {out}')
    warnings.filterwarnings('ignore', module='PIL')  # broken pictures are reported below
    files, report = open_source(args.src), defaultdict(list)
    wanted = ('.xml',) if args.form == 'voc' else PICTURES
    if not any(path.suffix.lower() in wanted for path in files):
        raise ValueError(f'nothing to do in {args.src}: looked for {" ".join(wanted)} at any depth')
    prepare = {'voc': prepare_voc, 'folder': prepare_folder}[args.form]
    with whole_folder(args.out, args.force) as partial_out:
        counts = prepare(files, partial_out, args, report)
        found = {kind: names for kind, names in report.items() if names}
        repairs = [f'{k}: {len(v)} ({", ".join(map(str, v[:3]))})' for k, v in found.items()]
        if not counts:
            raise ValueError(f'nothing usable is left of {args.src}; {"; ".join(repairs)}')
    print('\n'.join([*counts, *repairs, f'written to {args.out}']))


if __name__ == '__main__':
    main()
