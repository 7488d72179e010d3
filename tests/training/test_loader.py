"""Batches: sizes, normalisation, order, augmentation, with and without workers."""

import random
import zipfile
from dataclasses import replace

import pytest
import torch

Image = pytest.importorskip('PIL.Image')
pytest.importorskip('timm')

from timm.data import create_transform

from ghost_plugin.training.image_folder import ImageFolder
from ghost_plugin.training.loader import Augmentation, Calibration, ImageLoader
from ghost_plugin.training.preprocessing import Preprocessing

SMALL, LARGE = Preprocessing((32, 32), crop_pct=1.0), Preprocessing((72, 80))
SIZES = pytest.mark.parametrize('preprocessing', [SMALL, LARGE], ids=['small', 'large'])
RAW = {'mean': (0.0,) * 3, 'std': (1.0,) * 3}


@SIZES
@pytest.mark.parametrize('workers', [0, 2])
def test_ordered_gives_all_images_in_their_order(pictures, preprocessing, workers):
    loader = ImageLoader(ImageFolder(pictures, 'val'), preprocessing, workers=workers)
    batches = list(loader.ordered(5))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    assert torch.cat([labels for _, labels in batches]).tolist() == loader.images.labels
    transform = create_transform(**preprocessing.data_config())
    want = torch.stack([transform(loader.images.open(i)) for i in range(12)])
    assert torch.equal(torch.cat([images for images, _ in batches]), want)
    assert loader.images.transform is None


def test_bgr_networks_get_their_channel_order(pictures):
    images = ImageFolder(pictures, 'val')
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    (rgb, _), *_ = ImageLoader(images, Preprocessing((32, 32), **RAW, crop_pct=1.0)).ordered(12)
    swapped = Preprocessing((32, 32), mean, std, 1.0, bgr=True)
    (bgr, _), *_ = ImageLoader(images, swapped).ordered(12)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    torch.testing.assert_close(bgr, (rgb.flip(1) - mean) / std)


@SIZES
@pytest.mark.parametrize('bgr', [False, True])
def test_the_prefetcher_of_gpus_gives_the_same_batches(pictures, preprocessing, bgr):
    images = ImageFolder(pictures)
    plain, prefetching = (
        ImageLoader(images, replace(preprocessing, bgr=bgr), workers=0) for _ in range(2)
    )
    prefetching.prefetch = True
    for way in (lambda loader: loader.ordered(8), lambda loader: loader.shuffled(8, 3)):
        for (a, x), (b, y) in zip(list(way(plain)), list(way(prefetching)), strict=True):
            torch.testing.assert_close(a, b)
            assert torch.equal(x, y)


@SIZES
@pytest.mark.parametrize('workers', [0, 2])
def test_shuffled_depends_on_the_seed_alone(pictures, preprocessing, workers):
    loader = ImageLoader(ImageFolder(pictures), preprocessing, workers=workers)
    first = list(loader.shuffled(8, 1))
    torch.rand(3), random.random()  # the state of the global generators does not matter
    for (a, x), (b, y) in zip(first, loader.shuffled(8, 1), strict=True):
        assert torch.equal(a, b) and torch.equal(x, y)
    assert [len(x) for x, _ in first] == [8] * 4 and loader.steps(8) == 4
    other = next(loader.shuffled(8, 2))
    assert not torch.equal(first[0][1], other[1]) and first[0][0].shape == other[0].shape


def test_a_batch_larger_than_the_data_is_all_of_it(pictures):
    loader = ImageLoader(ImageFolder(pictures), SMALL)
    assert [len(x) for x, _ in loader.shuffled(1000, 0)] == [36] and loader.steps(1000) == 1


@pytest.mark.parametrize('workers', [0, 2])
def test_evaluation_leaves_the_global_generators_alone(pictures, workers):
    loader = ImageLoader(ImageFolder(pictures), LARGE, workers=workers)
    before = torch.get_rng_state(), random.getstate()
    list(loader.ordered(8))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


@pytest.fixture
def one_image(tmp_path):
    """A folder with one image of 8 x 8 different pixels."""
    (tmp_path / 'one/a').mkdir(parents=True)
    Image.frombytes('L', (8, 8), bytes(range(1, 65))).save(tmp_path / 'one/a/1.png')
    return ImageFolder(tmp_path / 'one')


def drawn(images, augmentation, number=200):
    loader = ImageLoader(images, Preprocessing((8, 8), **RAW, crop_pct=1.0), augmentation)
    return [(255 * next(loader.shuffled(1, seed))[0][0, 0]).round() for seed in range(number)]


def test_small_images_are_shifted_and_mirrored(one_image):
    image = torch.arange(1.0, 65).view(8, 8)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = {tuple(padded[r : r + 8, c : c + 8].flatten().tolist())
               for r in range(3) for c in range(3)}  # fmt: skip
    shifted = {tuple(x.flatten().tolist()) for x in drawn(one_image, Augmentation(flip=False))}
    assert shifted == windows
    mirrored = drawn(one_image, Augmentation(padding=0))
    share = sum(torch.equal(x, image.flip(1)) for x in mirrored) / len(mirrored)
    assert 0.35 < share < 0.65
    assert all(torch.equal(x, image) or torch.equal(x, image.flip(1)) for x in mirrored)


def test_crops_of_large_images_are_large_enough(tmp_path):
    (tmp_path / 'a').mkdir()
    Image.linear_gradient('L').save(tmp_path / 'a/1.png')  # grey, rows from 0 to 255
    images = ImageFolder(tmp_path)
    half = ImageLoader(
        images, Preprocessing((72, 80), **RAW), Augmentation(min_area=0.5), workers=0
    )
    for seed in range(20):
        crop = next(half.shuffled(1, seed))[0]
        assert crop.shape == (1, 3, 72, 80)
        rows = crop[0, 0].mean(1)
        assert rows.max() - rows.min() > 0.5 * 0.8


def test_calibration_can_be_iterated_again(pictures):
    loader = ImageLoader(ImageFolder(pictures, 'val'), LARGE, workers=0)
    shown = []
    batches = Calibration(loader, 5, progress=lambda *args: shown.append(args[1:3]))
    first = list(batches)
    assert [len(x) for x in first] == [5, 5, 2] and len(batches) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, batches, strict=True))
    assert shown == [(5, 12), (10, 12), (12, 12)]  # decoded once
    wrapped = Calibration(loader, 12, wrap=lambda images: {'inputs': images})
    assert [x['inputs'].shape for x in wrapped] == [(12, 3, 72, 80)]


def test_large_calibration_sets_are_decoded_again(pictures, monkeypatch):
    monkeypatch.setattr('ghost_plugin.training.loader.KEPT_BYTES', 0)
    batches = Calibration(ImageLoader(ImageFolder(pictures, 'val'), LARGE, workers=0), 12)
    assert torch.equal(*[next(iter(batches)) for _ in range(2)]) and not batches._kept


def test_flat_folders_have_no_class(pictures):
    loader = ImageLoader(ImageFolder(pictures / 'val/red'), SMALL)
    assert next(loader.ordered(4))[1].tolist() == [-1] * 4


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_image_is_named(pictures, workers):
    (pictures / 'val/blue/0.png').write_bytes(b'broken')
    loader = ImageLoader(ImageFolder(pictures, 'val'), SMALL, workers=workers)
    with pytest.raises(ValueError, match=r'cannot read val/blue/0\.png'):
        list(loader.ordered(5))


def test_workers_read_a_zip_each_for_itself(pictures, tmp_path):
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        for path in sorted(pictures.rglob('*.png')):
            archive.write(path, path.relative_to(pictures))
    images = ImageFolder(tmp_path / 'all.zip', 'val')
    images.open(0)  # opens the zip in this process, too
    one, other = (ImageLoader(images, SMALL, workers=workers).ordered(4) for workers in (0, 2))
    for (a, _), (b, _) in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'LA', '1', 'I;16', 'CMYK'])
def test_all_modes_become_rgb(tmp_path, mode):
    (tmp_path / 'a').mkdir()
    suffix = 'jpg' if mode == 'CMYK' else 'png'
    Image.new(mode, (9, 7), 1 if mode == '1' else None).save(tmp_path / f'a/1.{suffix}')
    images = next(ImageLoader(ImageFolder(tmp_path), SMALL).ordered(1))[0]
    assert images.shape == (1, 3, 32, 32)


def test_exif_orientation_is_ignored_as_in_timm(tmp_path):
    (tmp_path / 'a').mkdir()
    image, exif = Image.linear_gradient('L').crop((0, 0, 64, 256)), Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / 'a/1.jpg', exif=exif)
    assert ImageFolder(tmp_path).open(0).size == (64, 256)
