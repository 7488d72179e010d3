"""Views of calibration images: flipped or not, with a part of another image pasted into them.

Hundreds of images determine the weights of late layers badly. The original labels views like any
image, and unlike crops of another size these keep the statistics of pixels.

Source: Asano and Saeed, The Augmented Image Prior, ICLR 2023 (arXiv 2112.00725), for learning from
a teacher on views of very few images; Yun et al., CutMix, ICCV 2019 (arXiv 1905.04899), for the
parts of other images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...utils.modules import tensors_in
from .batches import batch_size

MAX_AREA = 0.5  # of a view that shows another image
# Images and views together that are enough, views of an image, and bytes of all.
ENOUGH_IMAGES, MAX_VIEWS, MAX_BYTES = 4096, 3, 2**29


def can_view(batch: Any) -> bool:
    """Say if a batch holds nothing but images: one floating tensor (N, 1 or 3, H, W).

    Boxes or masks beside them would belong to other places of a view.

    Args:
        batch: A calibration batch.
    """
    leaves = tensors_in(batch)
    if len(leaves) != 1 or not leaves[0].is_floating_point():
        return False
    return leaves[0].ndim == 4 and leaves[0].shape[1] in (1, 3)


def num_views(batches: Sequence[Any]) -> int:
    """Number of views that each image needs beside it; 0 where there are enough images.

    Args:
        batches: Calibration batches.
    """
    images = sum(map(batch_size, batches))
    size = sum(x.numel() * x.element_size() for batch in batches for x in tensors_in(batch))
    times = min(round(ENOUGH_IMAGES / images), MAX_BYTES // max(1, size))
    return min(MAX_VIEWS, max(0, times - 1))


def with_views(batches: Sequence[Any], number: int, seed: int) -> list[Any]:
    """Put views of each image behind it.

    Fits hold the last images back, so an image and its views stay together.

    Args:
        batches: Calibration batches.
        number: Views of each image.
        seed: Of the views.

    Returns:
        Batches of ``number`` + 1 times as many images; the batches given if they hold more than
        images.
    """
    if not number or not all(map(can_view, batches)):
        return list(batches)
    generator = torch.Generator().manual_seed(seed)

    def extend(images: Any) -> Any:
        if not isinstance(images, torch.Tensor):
            return images
        views = [images, *(random_views(images, generator) for _ in range(number))]
        return torch.stack(views, dim=1).flatten(0, 1)

    return [pytree.tree_map(extend, batch) for batch in batches]


def random_views(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image, flipped or not, with a part of another one at the place that it has there.

    Args:
        images: (N, C, H, W).
        generator: Draws flips, images and places, on the CPU.

    Returns:
        (N, C, H, W)
    """
    number = len(images)
    flip, area, top, left = torch.rand(4, number, generator=generator).to(images.device)
    others = images[torch.randperm(number, generator=generator).to(images.device)]
    side = (MAX_AREA * area).sqrt()
    inside = []
    for length, start in zip(images.shape[2:], (top, left), strict=True):
        place = (torch.arange(length, device=images.device) + 0.5) / length
        first = (start * (1 - side))[:, None]
        inside.append((place >= first) & (place < first + side[:, None]))
    rows, columns = inside
    pasted = rows[:, None, :, None] & columns[:, None, None]
    flipped = torch.where((flip < 0.5)[:, None, None, None], images.flip(3), images)
    return torch.where(pasted, others, flipped)
