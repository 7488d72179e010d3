#!/usr/bin/env python3
"""Make a classification folder and a COCO detection set from scikit-learn's handwritten digits.

Source: the 1,797 8x8 digits of scikit-learn's ``load_digits``, the test part of Alpaydin and
Kaynak, Optical Recognition of Handwritten Digits, UCI 1998. They come from 13 writers, one after
the other, so a cut in their order with a gap around it keeps writers apart.
"""

import argparse
import json
from pathlib import Path

from _files import atomic_folder

from ghost_plugin.cli.errors import needs, tool

needs('numpy', 'PIL', 'sklearn')

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

DATA = load_digits()
# Samples of the first ten writers train, those of the last ones validate; half a writer between.
SPLITS = {'train': slice(0, 1382), 'val': slice(1451, 1797)}
SIZE = 160  # height and width of a detection image, pixels
CLASS_SIZE = 32  # height and width of a classification image, pixels
DIGITS = (2, 6)  # lowest and highest number per image
SIZES = (26, 70)  # height and width of a digit with its margin, pixels
CONTRAST = (80, 220)  # grey levels between ink and paper


def paper(rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Uneven, noisy background with strokes that are no digits, and its mean colour (3,)."""
    tint = rng.uniform(40, 215) + rng.uniform(-25, 25, 3)
    coarse = (tint + rng.normal(0, 18, (6, 6, 1)) + rng.normal(0, 6, (6, 6, 3))).clip(0, 255)
    waves = Image.fromarray(coarse.astype('uint8')).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    noise = rng.normal(0, rng.uniform(2, 10), (SIZE, SIZE, 1))
    image = Image.fromarray((np.asarray(waves) + noise).clip(0, 255).astype('uint8'))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 12)):
        corner, reach = rng.uniform(0, SIZE, 2), rng.uniform(6, 40, 2)
        box = [*corner, *(corner + reach)]
        ink = tuple(int(v) for v in (tint + rng.normal(0, 40)).clip(0, 255))
        (draw.line, draw.rectangle, draw.ellipse)[rng.integers(3)](
            box, ink if rng.integers(2) else None
        )
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8))), tint


def stamp(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One digit at a random size and slant, (h, w) coverage within 0..1, cut to its ink."""
    wide, tall = rng.uniform(*SIZES) * rng.uniform(0.85, 1.15, 2)
    grey = Image.fromarray((np.pad(digit, 1) * (255 / 16)).astype('uint8'))
    grey = grey.resize((max(12, int(wide)), max(12, int(tall))), Image.Resampling.BICUBIC)
    turned = grey.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True)
    ink = np.asarray(turned, 'float32') / 255
    rows, columns = np.where(ink > 0.25)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def overlaps(box: list[int], others: list[list[int]]) -> bool:
    """True if a box (x, y, w, h) covers more than a tenth of itself or of another one."""
    for other in others:
        w = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
        h = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
        if max(w, 0) * max(h, 0) > 0.1 * min(box[2] * box[3], other[2] * other[3]):
            return True
    return False


def scene(pool: list[int], rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, list]]]:
    """Draw an image; returns it with its (class, (x, y, w, h)) pairs."""
    image, tint = paper(rng)
    canvas, found = np.asarray(image, 'float32').copy(), []
    wanted = rng.integers(DIGITS[0], DIGITS[1] + 1)
    for _ in range(20 * wanted):
        index = rng.choice(pool)
        ink = stamp(DATA.images[index], rng)
        h, w = ink.shape
        x, y = (int(rng.integers(0, SIZE - size + 1)) for size in (w, h))
        if overlaps([x, y, w, h], [box for _, box in found]):
            continue
        contrast = rng.uniform(*CONTRAST) * (1 if tint.mean() < 128 else -1)
        canvas[y : y + h, x : x + w] += ink[..., None] * contrast
        found.append((int(DATA.target[index]), [x, y, w, h]))
        if len(found) == wanted:
            break
    return Image.fromarray(canvas.clip(0, 255).astype('uint8')), found


def make_detection(out: Path, split: str, images: int, seed: int) -> None:
    """``images`` scenes of a split as JPEG, and their boxes in COCO's format."""
    rng = np.random.default_rng([seed, len(split)])
    pool = range(len(DATA.target))[SPLITS[split]]
    (out / split).mkdir(parents=True)
    coco = {
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': str(i)} for i in range(10)],
    }
    for number in range(images):
        image, found = scene(pool, rng)
        name = f'{number:05d}.jpg'
        image.save(out / split / name, quality=92)
        coco['images'].append({'id': number, 'file_name': name, 'width': SIZE, 'height': SIZE})
        coco['annotations'] += [
            {
                'id': len(coco['annotations']) + i,
                'image_id': number,
                'category_id': digit,
                'bbox': box,
                'area': box[2] * box[3],
                'iscrowd': 0,
            }
            # COCO's evaluation takes an id of 0 for no match.
            for i, (digit, box) in enumerate(found, start=1)
        ]
    (out / f'{split}.json').write_text(json.dumps(coco))


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
    parser.add_argument('--train', type=int, default=2000, help='detection images to train on')
    parser.add_argument('--val', type=int, default=200, help='detection images to validate on')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--force', action='store_true', help='make a folder anew that is there')
    args = parser.parse_args()
    if args.train < 1 or args.val < 1:
        raise ValueError(f'at least 1 image each, got --train {args.train} --val {args.val}')
    with atomic_folder(args.out, args.force) as out:
        for split in SPLITS:
            make_detection(out / 'detection', split, getattr(args, split), args.seed)
            make_classification(out / 'classification', split)
    print(f'{args.train} + {args.val} detection images and 1728 digits in {args.out}')


if __name__ == '__main__':
    main()
