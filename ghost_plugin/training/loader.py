"""Batches of images for training, evaluation and calibration, by timm's loaders and transforms."""

import copy
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..utils import optional
from .image_folder import ImageFolder
from .preprocessing import Preprocessing

ProgressFn = Callable[[str, int, int, str], None]  # label, number done, total, note
Batch = tuple[torch.Tensor, torch.Tensor]  # (N, 3, H, W) normalised, (N,) class indices
KEPT_BYTES = 2**30  # calibration batches up to this size are decoded once


def no_progress(*_: object) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        flip: Mirror half of them.
        padding: Shifts of small images, at most this share of their size.
        min_area: Random resized crops of large images cover at least this share of the area.
    """

    flip: bool = True
    padding: float = 0.125
    min_area: float = 0.35


class ImageLoader:
    """Batches of an :class:`ImageFolder` as a network takes them, on its device.

    Args:
        images: Images, with class indices or -1.
        preprocessing: Input size, normalisation and crop of the network.
        augmentation: Random changes in :meth:`shuffled`.
        device: Device of the batches.
        workers: Decoding processes; by default none for small inputs, else one per core, at most
            8. The random numbers of :meth:`shuffled` depend on it.

    Raises:
        ImportError: timm is missing.
    """

    def __init__(
        self,
        images: ImageFolder,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        device: torch.device | str = 'cpu',
        workers: int | None = None,
    ) -> None:
        optional.require('timm')
        self.images, self.preprocessing = images, preprocessing
        self.augmentation = augmentation or Augmentation()
        self.device = torch.device(device)
        self.prefetch = self.device.type == 'cuda'  # uint8 batches are normalised on the device
        default = 0 if preprocessing.small else min(os.cpu_count() or 1, 8)
        self.workers = default if workers is None else workers

    def __len__(self) -> int:
        return len(self.images)

    def steps(self, batch: int) -> int:
        """Number of full batches of ``batch`` images in an epoch, at least 1."""
        return max(len(self) // batch, 1)

    def ordered(self, batch: int) -> Iterator[Batch]:
        """All images once in their order, without augmentation; the last batch may be smaller."""
        return self._batches(batch, 0, False)

    def shuffled(self, batch: int, seed: int) -> Iterator[Batch]:
        """The full batches of one epoch, shuffled and augmented.

        Args:
            batch: Images per batch; all of them where there are fewer.
            seed: Seeds the global generators of torch and ``random``, which timm's transforms use.
        """
        torch.manual_seed(seed)
        random.seed(seed)
        return self._batches(min(batch, len(self)), seed, True)

    def _batches(self, batch: int, seed: int, training: bool) -> Iterator[Batch]:
        from timm.data import create_loader

        options = {
            **self.preprocessing.data_config(),
            'is_training': training,
            'use_prefetcher': self.prefetch,
            'scale': (self.augmentation.min_area, 1.0),
            'hflip': 0.5 * self.augmentation.flip,
            'color_jitter': None,
        }
        loader = create_loader(
            copy.copy(self.images),  # timm sets its transform
            batch_size=batch,
            num_workers=min(self.workers, -(-len(self) // batch)),
            persistent_workers=False,  # workers of a resumed training start afresh, too
            pin_memory=self.device.type == 'cuda',
            device=self.device,
            **options,
        )
        if training and self.preprocessing.small:
            loader.dataset.transform = self._shifting(options)
        # Without it, the seed of the workers is drawn from the caller's global generator.
        getattr(loader, 'loader', loader).generator = torch.Generator().manual_seed(seed)
        for images, labels in loader:
            images = images.to(self.device)
            yield images.flip(1) if self.preprocessing.bgr else images, labels.to(self.device)

    def _shifting(self, options: dict[str, Any]) -> Callable[[Any], torch.Tensor]:
        """timm's transform with random shifts in place of the random resized crop."""
        from timm.data import create_transform
        from torchvision.transforms import Compose, RandomCrop

        height, width = self.preprocessing.size
        padding = [int(size * self.augmentation.padding) for size in (width, height)]
        resize, crop, *_ = create_transform(**{**options, 'is_training': False}).transforms
        _, *others = create_transform(**options).transforms
        return Compose([resize, crop, RandomCrop((height, width), padding), *others])


class Calibration:
    """Batches of images without labels, the same in each iteration.

    Args:
        loader: Images.
        batch: Images per batch.
        wrap: Turns (N, 3, H, W) into the input of the model.
        progress: Shows the decoding.
    """

    def __init__(
        self,
        loader: ImageLoader,
        batch: int = 64,
        wrap: Callable[[torch.Tensor], Any] | None = None,
        progress: ProgressFn = no_progress,
    ) -> None:
        self.loader, self.batch, self.wrap, self.progress = loader, batch, wrap, progress
        height, width = loader.preprocessing.size
        self._keep = 12 * len(loader) * height * width <= KEPT_BYTES
        self._kept: list[torch.Tensor] = []

    def __len__(self) -> int:
        return -(-len(self.loader) // self.batch)

    def __iter__(self) -> Iterator[Any]:
        if self._keep and not self._kept:
            self._kept = list(self._decoded())
        for images in self._kept or self._decoded():
            yield self.wrap(images) if self.wrap else images

    def _decoded(self) -> Iterator[torch.Tensor]:
        done = 0
        for images, _ in self.loader.ordered(self.batch):
            done += len(images)
            self.progress('decoding', done, len(self.loader), '')
            yield images
