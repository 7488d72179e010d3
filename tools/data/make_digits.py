#!/usr/bin/env python3
"""Make sets for four tasks from scikit-learn's handwritten digits.

``classification`` holds a folder per class, ``detection`` scenes with boxes in COCO's format,
``segmentation`` single digits with masks in MMSegmentation's layout, ``keypoints`` single digits
with the ends of their ink as key points in COCO's format.

Source: the 1,797 8x8 digits of scikit-learn's ``load_digits``, the test part of Alpaydin and
Kaynak, Optical Recognition of Handwritten Digits, UCI 1998. They come from 13 writers, one after
the other, so a cut in their order with a gap around it keeps writers apart.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _files import atomic_folder

from ghost_plugin.cli.errors import needs, tool

needs('numpy', 'PIL', 'sklearn')

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

DATA = load_digits()
# Samples of the first ten writers train, those of the last ones validate; half a writer between.
SPLITS = {'train': slice(0, 1382), 'val': slice(1451, 1797)}
CLASS_SIZE = 32  # height and width of a classification image, pixels
CONTRAST = (80, 220)  # grey levels between ink and paper
INK = 0.25  # coverage from which a pixel belongs to a digit
# Key points and the lines that a drawing has between them; COCO counts these from 1.
ENDS = {'keypoints': ['top', 'bottom', 'left', 'right'], 'skeleton': [[1, 2], [3, 4]]}
END = 1 / 8  # part of a digit's height or width that is its end
LOOSE = 0.2  # most that a box of the key points exceeds the ink on a side, in heights or widths


@dataclass(frozen=True)
class Style:
    """How the images of a task are drawn."""

    size: int  # height and width of an image, pixels
    digits: tuple[int, int]  # lowest and highest number per image
    sizes: tuple[int, int]  # height and width of a digit with its margin, pixels
    clutter: tuple[int, int]  # least number of strokes that are no digits, and a bound above it
    tint: tuple[int, int]  # darkest and brightest grey level of the paper
    waves: int  # standard deviation of the paper's unevenness, grey levels


DETECTION = Style(
    size=160, digits=(2, 6), sizes=(26, 70), clutter=(3, 12), tint=(40, 215), waves=18
)
# Digits that are large, bright on dark paper and almost alone: minutes of training learn them.
SMALL = Style(size=64, digits=(1, 1), sizes=(44, 56), clutter=(0, 2), tint=(40, 110), waves=6)


@dataclass(frozen=True)
class Digit:
    """A digit in an image: its class, its upper left corner and its coverage (h, w) in 0..1."""

    kind: int
    x: int
    y: int
    ink: np.ndarray

    @property
    def box(self) -> list[int]:
        """(x, y, w, h) of the ink."""
        return [self.x, self.y, *self.ink.shape[::-1]]


def paper(style: Style, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Uneven, noisy background with strokes that are no digits, and its mean colour (3,)."""
    size = style.size
    tint = rng.uniform(*style.tint) + rng.uniform(-25, 25, 3)
    coarse = (tint + rng.normal(0, style.waves, (6, 6, 1)) + rng.normal(0, 6, (6, 6, 3))).clip(
        0, 255
    )
    waves = Image.fromarray(coarse.astype('uint8')).resize((size, size), Image.Resampling.BICUBIC)
    noise = rng.normal(0, rng.uniform(2, 10), (size, size, 1))
    image = Image.fromarray((np.asarray(waves) + noise).clip(0, 255).astype('uint8'))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(*style.clutter)):
        corner, reach = rng.uniform(0, size, 2), rng.uniform(6, 40, 2)
        box = [*corner, *(corner + reach)]
        ink = tuple(int(v) for v in (tint + rng.normal(0, 40)).clip(0, 255))
        (draw.line, draw.rectangle, draw.ellipse)[rng.integers(3)](
            box, ink if rng.integers(2) else None
        )
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8))), tint


def stamp(digit: np.ndarray, sizes: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One digit at a random size and slant, (h, w) coverage within 0..1, cut to its ink.

    Args:
        digit: (8, 8) grey levels in 0..16.
        sizes: Lowest and highest size with its margin, pixels.
        rng: Random numbers.
    """
    wide, tall = rng.uniform(*sizes) * rng.uniform(0.85, 1.15, 2)
    grey = Image.fromarray((np.pad(digit, 1) * (255 / 16)).astype('uint8'))
    grey = grey.resize((max(12, int(wide)), max(12, int(tall))), Image.Resampling.BICUBIC)
    turned = grey.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True)
    ink = np.asarray(turned, 'float32') / 255
    rows, columns = np.where(ink > INK)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def overlaps(box: list[int], others: list[list[int]]) -> bool:
    """True if a box (x, y, w, h) covers more than a tenth of itself or of another one."""
    for other in others:
        w = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
        h = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
        if max(w, 0) * max(h, 0) > 0.1 * min(box[2] * box[3], other[2] * other[3]):
            return True
    return False


def scene(style: Style, pool: range, rng: np.random.Generator) -> tuple[Image.Image, list[Digit]]:
    """Draw an image; returns it with its digits.

    Args:
        style: How it is drawn.
        pool: Samples to take digits from.
        rng: Random numbers.
    """
    image, tint = paper(style, rng)
    canvas, found = np.asarray(image, 'float32').copy(), []
    wanted = rng.integers(style.digits[0], style.digits[1] + 1)
    for _ in range(20 * wanted):
        index = rng.choice(pool)
        ink = stamp(DATA.images[index], style.sizes, rng)
        h, w = ink.shape
        x, y = (int(rng.integers(0, style.size - extent + 1)) for extent in (w, h))
        digit = Digit(int(DATA.target[index]), x, y, ink)
        if overlaps(digit.box, [other.box for other in found]):
            continue
        contrast = rng.uniform(*CONTRAST) * (1 if tint.mean() < 128 else -1)
        canvas[y : y + h, x : x + w] += ink[..., None] * contrast
        found.append(digit)
        if len(found) == wanted:
            break
    return Image.fromarray(canvas.clip(0, 255).astype('uint8')), found


def scenes(
    style: Style, split: str, images: int, rng: np.random.Generator
) -> Iterator[tuple[str, Image.Image, list[Digit]]]:
    """Draw the images of a split, with their names and digits."""
    for number in range(images):
        yield f'{number:05d}', *scene(style, range(len(DATA.target))[SPLITS[split]], rng)


def box_of(digit: Digit, rng: np.random.Generator) -> dict[str, Any]:
    """What COCO's detection says about a digit."""
    return {'bbox': digit.box, 'area': digit.box[2] * digit.box[3]}


def keypoints_of(digit: Digit, rng: np.random.Generator) -> dict[str, Any]:
    """What COCO's key points say about a digit: its top, bottom, left and right end.

    An end is the mean position of the ink in the outermost eighth of the height or width, so it
    lies on a stroke or in the middle of two, and no tie has to be broken. The box is wider than
    the ink by a random part on every side, like that of a detector; the exact one would give a
    coordinate of every key point away.
    """
    y, x = np.nonzero(digit.ink > INK)
    points = []
    for reach in (-y, y, -x, x):
        outer = reach > reach.max() - END * (np.ptp(reach) + 1)
        points += [round(digit.x + x[outer].mean(), 2), round(digit.y + y[outer].mean(), 2), 2]
    corner, extent = np.split(np.array(digit.box), 2)
    before, behind = rng.uniform(0, LOOSE, (2, 2)) * extent
    near = (corner - before).clip(0).round(2)
    wide, tall = size = ((corner + extent + behind).clip(0, SMALL.size) - near).round(2)
    return {
        'bbox': [*near, *size],
        'area': wide * tall,
        'keypoints': points,
        'num_keypoints': len(points) // 3,
    }


def make_coco(
    out: Path,
    split: str,
    images: int,
    seed: int,
    style: Style,
    describe: Callable[[Digit, np.random.Generator], dict[str, Any]],
    category: dict[str, Any],
) -> None:
    """Scenes of a split as JPEG, and what is known of their digits in COCO's format.

    Args:
        out: Folder; gets a folder and a JSON file with the name of the split.
        split: Whose writers draw.
        images: How many.
        seed: Of the random numbers.
        style: How they are drawn.
        describe: Fields of the annotation of a digit.
        category: Fields of every category beside its id and name.
    """
    rng = np.random.default_rng([seed, len(split)])
    (out / split).mkdir(parents=True)
    coco = {
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': str(i), **category} for i in range(10)],
    }
    for number, (name, image, digits) in enumerate(scenes(style, split, images, rng)):
        image.save(out / split / f'{name}.jpg', quality=92)
        coco['images'].append(
            {'id': number, 'file_name': f'{name}.jpg', 'width': style.size, 'height': style.size}
        )
        coco['annotations'] += [
            {
                'id': len(coco['annotations']) + i,
                'image_id': number,
                'category_id': digit.kind,
                **describe(digit, rng),
                'iscrowd': 0,
            }
            # COCO's evaluation takes an id of 0 for no match.
            for i, digit in enumerate(digits, start=1)
        ]
    (out / f'{split}.json').write_text(json.dumps(coco))


def make_segmentation(out: Path, split: str, images: int, seed: int) -> None:
    """Scenes of a split as JPEG, and masks as PNG: 0 is paper, 1 to 10 the digits 0 to 9.

    Args:
        out: Folder; gets ``img_dir`` and ``ann_dir`` with a folder of the name of the split.
        split: Whose writers draw.
        images: How many.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng([seed, len(split)])
    for folder in ('img_dir', 'ann_dir'):
        (out / folder / split).mkdir(parents=True)
    for name, image, digits in scenes(SMALL, split, images, rng):
        mask = np.zeros((SMALL.size, SMALL.size), 'uint8')
        for digit in digits:
            h, w = digit.ink.shape
            part = mask[digit.y : digit.y + h, digit.x : digit.x + w]
            part[digit.ink > INK] = digit.kind + 1
        image.save(out / 'img_dir' / split / f'{name}.jpg', quality=92)
        Image.fromarray(mask).save(out / 'ann_dir' / split / f'{name}.png')


def make_classification(out: Path, split: str) -> None:
    """The digits of a split as PNG in one folder per class."""
    for index in range(len(DATA.target))[SPLITS[split]]:
        folder = out / split / str(DATA.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((DATA.images[index] * (255 / 16)).astype('uint8'))
        size = (CLASS_SIZE, CLASS_SIZE)
        grey.resize(size, Image.Resampling.BICUBIC).save(folder / f'{index:04d}.png')


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, nargs='?', default=Path('data/digits'), help='folder')
    parser.add_argument('--train', type=int, default=2000, help='images of a task to train on')
    parser.add_argument('--val', type=int, default=200, help='images of a task to validate on')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--force', action='store_true', help='make a folder anew that is there')
    args = parser.parse_args()
    if args.train < 1 or args.val < 1:
        raise ValueError(f'at least 1 image each, got --train {args.train} --val {args.val}')
    with atomic_folder(args.out, args.force) as out:
        for split in SPLITS:
            drawn = split, getattr(args, split), args.seed
            make_coco(out / 'detection', *drawn, DETECTION, box_of, {})
            make_coco(out / 'keypoints', *drawn, SMALL, keypoints_of, ENDS)
            make_segmentation(out / 'segmentation', *drawn)
            make_classification(out / 'classification', split)
    print(
        f'{args.train} + {args.val} images each for detection, segmentation and key points, '
        f'and 1728 digits in {args.out}'
    )


if __name__ == '__main__':
    main()
