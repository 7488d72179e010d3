import torch

from ghost_plugin.conversion.fitting.views import can_view, num_views, random_views, with_views


def test_views_stay_with_their_image():
    images = torch.arange(1.0, 6)[:, None, None, None].expand(5, 3, 8, 8)
    (found,) = with_views([images], 2, 0)
    assert found.shape == (15, 3, 8, 8)
    most = found[:, 0].flatten(1).median(dim=1).values  # at most half of a view is another image
    torch.testing.assert_close(most, torch.arange(1.0, 6).repeat_interleave(3))


def test_the_image_itself_is_the_first():
    images = torch.randn(4, 3, 16, 16)
    (found,) = with_views([images], 1, 0)
    assert torch.equal(found[::2], images)
    assert not torch.equal(found[1::2], images)


def test_few_images_get_views():
    batch = torch.zeros(128, 3, 1, 1)
    assert [num_views([batch] * number) for number in (1, 8, 11, 20, 40)] == [3, 3, 2, 1, 0]


def test_views_of_large_images_are_limited():
    batch = torch.zeros(1, 3, 1, 1).expand(50, 3, 512, 512)  # 150 MB, if it were not expanded
    assert num_views([batch]) == 2


def test_one_seed_gives_the_same_views():
    batches = [torch.randn(4, 3, 16, 16)]
    assert torch.equal(with_views(batches, 1, 3)[0], with_views(batches, 1, 3)[0])
    assert not torch.equal(with_views(batches, 1, 3)[0], with_views(batches, 1, 4)[0])


def test_views_show_an_image_and_a_part_of_another():
    number, size = 400, 32
    columns = torch.arange(float(size)).expand(number, 1, size, size)
    images = columns + size * torch.arange(number)[:, None, None, None]
    views = random_views(images, torch.Generator().manual_seed(0))
    image, column = views.div(size, rounding_mode='floor'), views % size
    pasted = image != torch.arange(number)[:, None, None, None]
    assert torch.equal(column[pasted], columns[pasted])  # where it was, not flipped
    flipped = (column == columns.flip(3)) | pasted
    assert ((column == columns) | flipped.flatten(1).all(1)[:, None, None, None]).all()
    assert 150 < flipped.flatten(1).all(1).sum() < 250
    shares = pasted.float().mean((1, 2, 3))
    assert shares.max() < 0.55
    assert 0.2 < shares.mean() < 0.3
    assert (pasted.any(3).sum(2) - pasted.any(2).sum(2)).abs().max() <= 1  # a square


def test_a_single_image_is_flipped_or_not():
    image = torch.randn(1, 3, 8, 8)
    found = random_views(image, torch.Generator().manual_seed(0))
    assert (found == image).logical_or(found == image.flip(3)).all()


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
