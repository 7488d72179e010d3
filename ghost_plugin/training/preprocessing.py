"""How a network wants its pictures: size, normalisation, the part that is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..utils import optional

optional.require('PIL')

from PIL import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = 64  # pixels; up to this side pictures are shown whole and kept in memory
_FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of a picture before a network sees it.

    Attributes:
        size: Height and width, pixels.
        mean, std: One per channel, of values within 0..1, in the network's order of channels.
        crop: Share of the resized picture's side that is looked at, the middle, without
            augmentation.
        interpolation: ``'bilinear'`` or ``'bicubic'``.
        bgr: The network takes blue, green, red.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = 0.875
    interpolation: str = 'bilinear'
    bgr: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f'size must be a height and a width of 1 or more, got {self.size}')
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f'mean and std must be 3 numbers each, std above 0, got {self.mean}, {self.std}'
            )

    @property
    def small(self) -> bool:
        """Whether pictures are small enough to be kept in memory."""
        return max(self.size) <= SMALL

    @property
    def filter(self) -> Image.Resampling:
        """The interpolation as Pillow names it."""
        return _FILTERS.get(self.interpolation, Image.Resampling.BICUBIC)

    def fit(self, image: Image.Image) -> torch.Tensor:
        """The middle of a picture, resized: (3, height, width), uint8."""
        if image.size != self.size[::-1] or self.crop != 1:
            image = self._middle(image)
        return to_tensor(image)

    def _middle(self, image: Image.Image) -> Image.Image:
        wanted = [int(side / self.crop) for side in self.size]
        width, height = image.size
        scale = max(wanted[0] / height, wanted[1] / width)
        # Whole pixels by cutting off, as torchvision and timm do it.
        rows, columns = (
            max(int(side * scale + 1e-6), least)
            for side, least in zip((height, width), wanted, strict=True)
        )
        image = image.resize((columns, rows), self.filter)
        top, left = (round((a - b) / 2) for a, b in zip((rows, columns), self.size, strict=True))
        return image.crop((left, top, left + self.size[1], top + self.size[0]))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) uint8 to what the network takes, float32."""
        images = images.flip(1) if self.bgr else images
        std = images.new_tensor(self.std, dtype=torch.float).view(3, 1, 1)
        mean = images.new_tensor(self.mean, dtype=torch.float).view(3, 1, 1)
        return images * (1 / (255 * std)) - mean / std


def preprocessing_from_cfg(pretrained_cfg: Mapping[str, Any]) -> Preprocessing:
    """The look that timm writes beside its weights."""
    default = Preprocessing()
    _, height, width = pretrained_cfg.get('input_size') or (3, *default.size)
    mean, std = (
        tuple(pretrained_cfg.get(name) or getattr(default, name)) for name in ('mean', 'std')
    )
    return Preprocessing(
        (height, width),
        mean if len(mean) == 3 else default.mean,
        std if len(std) == 3 else default.std,
        pretrained_cfg.get('crop_pct') or default.crop,
        pretrained_cfg.get('interpolation') or 'bicubic',
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB picture as (3, height, width), uint8."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)
