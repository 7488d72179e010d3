"""Batches: sizes, normalisation, order, augmentation, the same from memory and from workers."""

import pytest
import torch

Image = pytest.importorskip('PIL.Image')

from ghost_plugin.training.image_folder import ImageFolder
from ghost_plugin.training.loader import Augmentation, Calibration, ImageLoader, move, part_of
from ghost_plugin.training.preprocessing import Preprocessing, to_tensor

SMALL, LARGE = Preprocessing((32, 32), crop=1.0), Preprocessing((72, 80))


def noise(width, height):
    pixels = torch.randint(0, 256, (height * width * 3,), dtype=torch.uint8)
    return Image.frombytes('RGB', (width, height), bytes(pixels.tolist()))


@pytest.mark.parametrize('size', [(300, 200), (200, 301), (224, 224), (50, 70)])
def test_look_is_that_of_timm(size):
    timm = pytest.importorskip('timm')
    from ghost_plugin.training.preprocessing import preprocessing_from_cfg

    model = timm.create_model('resnet18')
    look, image = preprocessing_from_cfg(model.pretrained_cfg), noise(*size)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(image)
    torch.testing.assert_close(look.normalise(look.fit(image)[None])[0], theirs)


@pytest.mark.parametrize('size', [(300, 200), (200, 301)])
def test_look_is_that_of_torchvision(size):
    models = pytest.importorskip('torchvision.models')
    from ghost_plugin.cli.model_loading import _torchvision_look

    weights, image = models.get_model_weights('resnet50'), noise(*size)
    look = _torchvision_look(weights)
    theirs = weights.DEFAULT.transforms()(image)
    torch.testing.assert_close(look.normalise(look.fit(image)[None])[0], theirs)


def test_normalised_values_and_order_of_channels():
    look = Preprocessing((1, 1), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(look.normalise(pixel).flatten(), torch.tensor([1, -1, -3.2]))
    swapped = Preprocessing((1, 1), look.mean, look.std, bgr=True).normalise(pixel)
    torch.testing.assert_close(swapped.flatten(), torch.tensor([0.2, -1, 0]))


@pytest.mark.parametrize(
    'wrong', [{'size': (0, 3)}, {'mean': (0.5,)}, {'std': (1, 1, 0)}], ids=['size', 'mean', 'std']
)
def test_bad_looks(wrong):
    with pytest.raises(ValueError, match='must be'):
        Preprocessing(**wrong)


@pytest.mark.parametrize('look', [SMALL, LARGE], ids=['memory', 'workers'])
def test_ordered_gives_all_pictures_as_they_are(pictures, look):
    feed = ImageLoader(ImageFolder(pictures, 'val'), look, workers=1)
    batches = list(feed.ordered(5))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    assert torch.cat([labels for _, labels in batches]).tolist() == feed.pictures.labels
    first = look.normalise(look.fit(feed.pictures.open(0))[None])
    torch.testing.assert_close(batches[0][0][:1], first)


@pytest.mark.parametrize('look', [SMALL, LARGE], ids=['memory', 'workers'])
def test_shuffled_comes_from_the_seed_alone(pictures, look):
    one, other = (ImageLoader(ImageFolder(pictures), look, workers=number) for number in (0, 2))
    torch.rand(3)  # the global generator does not matter
    for (a, x), (b, y) in zip(one.shuffled(8, 1), other.shuffled(8, 1), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert x.tolist() == y.tolist()
    labels = [torch.cat([y for _, y in one.shuffled(8, seed)]).tolist() for seed in (1, 2)]
    assert labels[0] != labels[1] and [len(x) for x in labels] == [32, 32]
    assert one.batches(8) == 4 and one.batches(1000) == 1


def test_workers_leave_the_global_generator_alone(pictures):
    feed = ImageLoader(ImageFolder(pictures), LARGE, workers=1)
    before = torch.get_rng_state()
    list(feed.shuffled(8, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_moved_pictures_are_parts_of_padded_ones():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(300, 3, 8, 8)
    moved = move(images, Augmentation(flip=False), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images[:1], (1, 1, 1, 1))
    windows = {tuple(padded[0, 0, r : r + 8, c : c + 8].flatten().tolist())
               for r in range(3) for c in range(3)}  # fmt: skip
    assert {tuple(one[0].flatten().tolist()) for one in moved} == windows
    mirrored = move(images, Augmentation(padding=0), torch.Generator().manual_seed(0))
    share = (mirrored == images.flip(3)).flatten(1).all(1).double().mean()
    assert 0.4 < share < 0.6
    assert ((mirrored == images) | (mirrored == images.flip(3))).flatten(1).all(1).all()


def test_parts_are_large_enough():
    import random

    image = Image.linear_gradient('L').convert('RGB')
    dice = random.Random(0)
    for _ in range(50):
        part = part_of(image, LARGE, Augmentation(min_area=0.5), dice)
        assert part.shape == (3, 72, 80)
        seen = part[0].float().mean(1)
        assert seen.max() - seen.min() > 0.5 * 255 * 0.8  # the gradient's rows that are in it
    whole = part_of(
        image, Preprocessing((256, 256)), Augmentation(False, min_area=1.0), random.Random(1)
    )
    assert whole.shape == (3, 256, 256)


def test_calibration_can_be_gone_through_again(pictures):
    feed = ImageLoader(ImageFolder(pictures, 'val'), LARGE, keep=True)
    batches = Calibration(feed, 5)
    assert [len(x) for x in batches] == [len(x) for x in batches] == [5, 5, 2]
    wrapped = Calibration(feed, 12, wrap=lambda images: {'inputs': images})
    assert [x['inputs'].shape for x in wrapped] == [(12, 3, 72, 80)]


def test_flat_pictures_have_no_class(pictures):
    feed = ImageLoader(ImageFolder(pictures / 'val/red'), SMALL)
    assert next(feed.ordered(4))[1].tolist() == [-1] * 4
    assert torch.equal(to_tensor(feed.pictures.open(0)), feed.kept[0])
