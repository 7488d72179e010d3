#!/usr/bin/env python3
"""Check a folder or zip of pictures in class folders and lay it out as OUT/<split>/<class>/.

Pictures that cannot be read to their end are left out, counted and named.
"""

import argparse
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from _cli import tool
from _pictures import PICTURES, SPLITS, Problems, report, size_of, unpack
from _whole_folder import whole_folder


def folder(source: Path, out: Path, every: int, problems: Problems) -> dict[str, int]:
    """Copy the pictures that can be read; without split folders every n-th one validates."""
    counts: dict[str, int] = defaultdict(int)
    pictures = [p for p in sorted(source.rglob('*')) if p.suffix.lower() in PICTURES]
    split_known = any(part.lower() in SPLITS for p in pictures for part in p.parts[-3:-2])
    for number, picture in enumerate(pictures):
        if size_of(picture) is None:
            problems['broken pictures, left out'].append(picture.name)
            continue
        split = 'val' if number % every == every - 1 else 'train'
        split = picture.parts[-3].lower() if split_known else split
        target = out / split / picture.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target / picture.name)
        counts[split] += 1
    return counts


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='folder or zip')
    parser.add_argument('out', type=Path, help='folder to make')
    parser.add_argument('--every', type=int, default=10, help='without splits, each n-th validates')
    parser.add_argument('--force', action='store_true', help='make a folder anew that is there')
    args = parser.parse_args()
    if args.every < 2:
        raise ValueError(f'--every must be 2 or more, got {args.every}')
    problems: Problems = defaultdict(list)
    whole = whole_folder(args.out, args.force, args.source)
    with whole as out, tempfile.TemporaryDirectory(dir=out) as scratch:
        counts = folder(unpack(args.source, Path(scratch)), out, args.every, problems)
        if not counts:
            raise ValueError(f'no usable pictures in class folders in {args.source}')
    report(args.out, counts, problems)


if __name__ == '__main__':
    main()
