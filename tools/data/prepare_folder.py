#!/usr/bin/env python3
"""Check a folder or zip of images in class folders and lay it out as OUT/<split>/<class>/.

Images that cannot be read to their end are left out, counted and named; of several with one
name in a class the later ones get another.
"""

import argparse
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path

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
)

from ghost_plugin.cli.errors import tool


def folder(source: Path, out: Path, problems: Problems, every: int) -> dict[str, int]:
    """Copy the images that can be read; without split folders every n-th one validates."""
    counts: dict[str, int] = defaultdict(int)
    classes: set[str] = set()
    images = images_in(source, problems)
    check(images)
    for number, path in enumerate(images):
        if image_size(source / path) is None:
            problems['broken images, left out'].append(str(path))
            continue
        split = split_above(path) or ('val' if number % every == every - 1 else 'train')
        target = out / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, free_name(target, problems))
        counts[split] += 1
        classes.add(path.parent.name)
    print(f'{len(classes)} classes: {first_names(sorted(classes), 10)}')
    return counts


def images_in(source: Path, problems: Problems) -> list[Path]:
    """Relative paths of all images, sorted; other files are noted."""
    files = list_files(source, problems)
    others = [str(path) for path in files if path.suffix.lower() not in IMAGES]
    if others:
        problems[f'files that are none of {", ".join(IMAGES)}, left out'] = others
    return [path for path in files if path.suffix.lower() in IMAGES]


def split_above(image: Path) -> str:
    """The split folder above an image's class folder, or ''."""
    return split_in_path(image.parent.parent)


def check(images: list[Path]) -> None:
    """Refuse images without a class, and splits for some of them only."""
    bare = [p for p in images if p.parent.name.lower() in ('', *SPLITS) and not split_above(p)]
    if bare:
        raise ValueError(
            f'images without a class folder: {first_names(bare)}; put all into CLASS/ or '
            f'SPLIT/CLASS/ (SPLIT is one of {", ".join(SPLITS)})'
        )
    splits = {split_above(path) for path in images} - {''}
    outside = sorted({path.parent for path in images if splits and not split_above(path)})
    if outside:
        raise ValueError(
            f'beside the splits {", ".join(sorted(splits))} there are classes in none: '
            f'{first_names(outside)}; move them into one of {", ".join(SPLITS)}, or out of the '
            'source'
        )


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
    make_folder(args, partial(folder, every=args.every), 'usable images in class folders')


if __name__ == '__main__':
    main()
