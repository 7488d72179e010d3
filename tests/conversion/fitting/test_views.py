import torch

from ghost_plugin.conversion.fitting.views import can_view, num_views, random_views, with_views


def test_views_stay_with_their_image():
    images = torch.arange(1.0, 6)[:, None, None, None].expand(5, 3, 8, 8)
    (found,) = with_views([images], 2, 0)
    assert found.shape == (15, 3, 8, 8)
    torch.testing.assert_close(found[:, 0, 0, 0], torch.arange(1.0, 6).repeat_interleave(3))


def test_the_image_itself_is_the_first():
    images = torch.randn(4, 3, 16, 16)
    (found,) = with_views([images], 1, 0)
    assert torch.equal(found[::2], images)
    assert not torch.equal(found[1::2], images)


def test_few_images_get_views():
    batch = torch.zeros(50, 3, 1, 1)
    assert [num_views([batch] * number) for number in (1, 7, 10, 14, 40)] == [2, 2, 1, 0, 0]


def test_one_seed_gives_the_same_views():
    batches = [torch.randn(4, 3, 16, 16)]
    assert torch.equal(with_views(batches, 1, 3)[0], with_views(batches, 1, 3)[0])
    assert not torch.equal(with_views(batches, 1, 3)[0], with_views(batches, 1, 4)[0])


def test_crops_show_parts_of_the_image():
    """Of a ramp from left to right a crop shows a part, at most doubled and not upside down."""
    ramp = torch.linspace(-1, 1, 64).expand(200, 1, 64, 64)
    views = random_views(ramp, torch.Generator().manual_seed(0))
    slopes = (views[:, 0, :, 40] - views[:, 0, :, 24]).mean(1) / (
        ramp[0, 0, 0, 40] - ramp[0, 0, 0, 24]
    )
    assert (slopes.abs() < 1.02).all()
    assert (slopes.abs() > 0.6).all()  # at least half of the area, within the aspect ratio
    assert 60 < (slopes < 0).sum() < 140  # half of them are flipped
    torch.testing.assert_close(views[:, 0, 0], views[:, 0, -1], atol=1e-4, rtol=0)


def test_only_plain_images_have_views():
    images = torch.randn(2, 3, 8, 8)
    assert can_view(images)
    assert can_view((images,))
    assert can_view({'x': images})
    boxes = (images, torch.rand(2, 4))
    assert not can_view(boxes)
    assert not can_view(torch.randn(2, 64, 8, 8))  # feature maps
    assert not can_view(torch.randint(9, (2, 5)))  # tokens
    assert with_views([boxes], 2, 0) == [boxes]


def test_arguments_keep_their_form():
    ((images,),) = with_views([(torch.randn(2, 3, 8, 8),)], 1, 0)
    assert images.shape == (4, 3, 8, 8)
