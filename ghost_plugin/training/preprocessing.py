"""Preprocessing of images for a network, in the terms of timm's data config."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = 64  # pixels; inputs up to this size are seen whole and augmented by shifts


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image to the input of a network.

    Attributes:
        size: Height and width of the input, pixels.
        mean, std: One per channel, for values in 0..1, in the network's channel order.
        crop_pct: Share of the resized image that the evaluation crop covers.
        interpolation: Resize filter by timm's name, such as ``'bilinear'`` or ``'bicubic'``.
        crop_mode: ``'center'``, ``'squash'`` or ``'border'``, as in timm.
        bgr: The network takes blue, green, red.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 0.875
    interpolation: str = 'bilinear'
    crop_mode: str = 'center'
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
        """True for inputs of at most 64 pixels."""
        return max(self.size) <= SMALL

    def data_config(self) -> dict[str, Any]:
        """The keywords of ``timm.data.create_transform`` and ``create_loader``, for RGB images."""
        step = -1 if self.bgr else 1
        return {
            'input_size': (3, *self.size),
            'mean': self.mean[::step],
            'std': self.std[::step],
            'crop_pct': self.crop_pct,
            'crop_mode': self.crop_mode,
            'interpolation': self.interpolation,
        }


def preprocessing_from_cfg(pretrained_cfg: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that timm records beside its weights; timm's defaults for what it lacks."""
    given = {
        name: pretrained_cfg[name]
        for name in ('crop_pct', 'crop_mode', 'interpolation')
        if pretrained_cfg.get(name)
    }
    for name in ('mean', 'std'):
        if len(pretrained_cfg.get(name) or ()) == 3:
            given[name] = tuple(pretrained_cfg[name])
    if pretrained_cfg.get('input_size'):
        given['size'] = tuple(pretrained_cfg['input_size'][1:])
    return replace(Preprocessing(interpolation='bicubic'), **given)
