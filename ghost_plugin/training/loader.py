"""Batches of pictures for training and evaluation: small ones from memory, others by workers."""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .image_folder import ImageFolder
from .preprocessing import Preprocessing, to_tensor

ProgressFn = Callable[[str, int, int, str], None]  # what is done, how many, of how many, a note
Batch = tuple[torch.Tensor, torch.Tensor]  # (N, 3, H, W) normalised, (N,) indices of classes
MEMORY = 2**31  # bytes of decoded pictures that may be kept


def no_progress(label: str, done: int, total: int, note: str = '') -> None:
    """Shows no progress."""


@dataclass(frozen=True)
class Augmentation:
    """What training does to pictures.

    Attributes:
        flip: Mirror half of them.
        padding: Small pictures are moved by at most this share of their side.
        min_area: Of large pictures at least this share of the area is seen.
    """

    flip: bool = True
    padding: float = 0.125
    min_area: float = 0.35


class ImageLoader:
    """Batches of :class:`ImageFolder` as a network wants them, on its device.

    Pictures without classes get label -1.

    Args:
        pictures: What to feed.
        look: How the network wants them.
        augmentation: Of :meth:`shuffled`.
        device: Of the batches.
        workers: Processes that decode large pictures; as many as cores without it, at most 8.
        keep: Keep large pictures in memory, too, as evaluation sees them: for calibration.
        tick: Shown how many of the kept pictures are decoded.
    """

    def __init__(
        self,
        pictures: ImageFolder,
        look: Preprocessing,
        augmentation: Augmentation | None = None,
        device: torch.device | str = 'cpu',
        workers: int | None = None,
        keep: bool = False,
        tick: ProgressFn = no_progress,
    ) -> None:
        self.pictures, self.look, self.device = pictures, look, torch.device(device)
        self.augmentation = augmentation or Augmentation()
        self.workers = min(os.cpu_count() or 1, 8) if workers is None else workers
        self.labels = torch.tensor(pictures.labels or [-1] * len(pictures))
        size = len(pictures) * 3 * look.size[0] * look.size[1]
        self.kept = self._decoded(tick) if (keep or look.small) and size <= MEMORY else None

    def __len__(self) -> int:
        return len(self.pictures)

    def _decoded(self, tick: ProgressFn) -> torch.Tensor:
        kept = torch.empty(len(self), 3, *self.look.size, dtype=torch.uint8)
        for index in range(len(self)):
            kept[index] = self.look.fit(self.pictures.open(index))
            tick('decoding', index + 1, len(self), '')
        return kept

    def ordered(self, batch: int) -> Iterator[Batch]:
        """All pictures once, in their order, without augmentation."""
        yield from self._batches(torch.arange(len(self)).split(batch), None)

    def shuffled(self, batch: int, seed: int) -> Iterator[Batch]:
        """All whole batches of one epoch, shuffled and augmented from ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        number = self.batches(batch)
        batches = order[: number * batch].split(batch)
        yield from self._batches(batches, generator)

    def batches(self, batch: int) -> int:
        """Batches of an epoch of :meth:`shuffled`: what does not fill one is left for another."""
        return max(len(self) // batch, 1)

    def _batches(
        self, indices: tuple[torch.Tensor, ...], generator: torch.Generator | None
    ) -> Iterator[Batch]:
        make = self._loaded if self.kept is None else self._from_memory
        for chosen, images in zip(indices, make(indices, generator), strict=True):
            yield self.look.normalise(images.to(self.device)), self.labels[chosen].to(self.device)

    def _from_memory(
        self, indices: tuple[torch.Tensor, ...], generator: torch.Generator | None
    ) -> Iterator[torch.Tensor]:
        for chosen in indices:
            images = self.kept[chosen]
            yield move(images, self.augmentation, generator) if generator else images

    def _loaded(
        self, indices: tuple[torch.Tensor, ...], generator: torch.Generator | None
    ) -> Iterator[torch.Tensor]:
        seed = None if generator is None else generator.initial_seed()
        data = _Decoder(self.pictures, self.look, self.augmentation, seed)
        yield from DataLoader(
            data,
            batch_sampler=[chosen.tolist() for chosen in indices],
            num_workers=min(self.workers, len(indices)),
            # The base seed of the workers would be drawn from the global generator, which a
            # training that is resumed has to find as it left it.
            generator=torch.Generator().manual_seed(seed or 0),
        )


class _Decoder(Dataset):
    """Pictures by index, augmented from a seed of their own, whichever worker has them."""

    def __init__(
        self,
        pictures: ImageFolder,
        look: Preprocessing,
        augmentation: Augmentation,
        seed: int | None,
    ) -> None:
        self.pictures, self.look, self.augmentation, self.seed = pictures, look, augmentation, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.seed is None:
            return self.look.fit(self.pictures.open(index))
        dice = random.Random(f'{self.seed} {index}')
        # Twice the size, because the part that is seen may be a quarter of the picture.
        image = self.pictures.open(index, tuple(2 * side for side in self.look.size[::-1]))
        return part_of(image, self.look, self.augmentation, dice)


def part_of(
    image: Image.Image, look: Preprocessing, augmentation: Augmentation, dice: random.Random
) -> torch.Tensor:
    """A random part of a picture at a shape near the network's, resized: (3, H, W), uint8."""
    shape = look.size[1] / look.size[0] * (4 / 3) ** dice.uniform(-1, 1)
    area = dice.uniform(augmentation.min_area, 1) * image.width * image.height
    width = min(round((area * shape) ** 0.5), image.width)
    height = min(round((area / shape) ** 0.5), image.height)
    left, top = dice.uniform(0, image.width - width), dice.uniform(0, image.height - height)
    box = (left, top, left + max(width, 1), top + max(height, 1))
    part = to_tensor(image.resize(look.size[::-1], look.filter, box))
    return part.flip(2) if augmentation.flip and dice.random() < 0.5 else part


def move(
    images: torch.Tensor, augmentation: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    """Shift each picture of (N, 3, H, W) by random pixels over a black border; mirror half."""
    number, _, height, width = images.shape
    reach = [int(side * augmentation.padding) for side in (height, width)]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    top, left = (torch.randint(2 * r + 1, (number, 1), generator=generator) for r in reach)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(number, 1, generator=generator) < 0.5 * augmentation.flip
    columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(number)[:, None, None]
    parts = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]]
    return parts.permute(0, 3, 1, 2).contiguous()


class Calibration:
    """Iterable of batches without labels, the same ones each time.

    Args:
        feed: The pictures.
        batch: Of them.
        wrap: Turns (N, 3, H, W) into what the model is called with.
    """

    def __init__(
        self, feed: ImageLoader, batch: int = 64, wrap: Callable[[torch.Tensor], Any] | None = None
    ) -> None:
        self.feed, self.batch, self.wrap = feed, batch, wrap

    def __len__(self) -> int:
        return -(-len(self.feed) // self.batch)

    def __iter__(self) -> Iterator[Any]:
        for images, _ in self.feed.ordered(self.batch):
            yield self.wrap(images) if self.wrap else images
