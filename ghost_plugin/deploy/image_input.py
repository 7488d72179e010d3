"""Images of 8 bits as the input of a file, which normalizes them itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .flat_io import TensorIO


@dataclass(frozen=True)
class ImageInput:
    """Pixels that a file takes in the place of normalized images.

    Attributes:
        mean, std: One per channel, for values in 0..1, in the channel order of the model.
        channels_last: The file takes (N, H, W, C) instead of (N, C, H, W).
        reversed_channels: The file takes the channels in the reverse order of the model's, such as
            RGB for a model that takes BGR.
    """

    mean: Sequence[float]
    std: Sequence[float]
    channels_last: bool = False
    reversed_channels: bool = False

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                'mean and std must be one number per channel each, std above 0, got '
                f'{self.mean}, {self.std}'
            )

    def pixels(self, images: torch.Tensor, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """Return the nearest pixels to normalized images.

        Args:
            images: (N, C, H, W), as the model takes them.
            dtype: Of the result.
        """
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        found = (255 * (images * std + mean)).round().clamp(0, 255).to(dtype)
        if self.reversed_channels:
            found = found.flip(1)
        return found.permute(0, 2, 3, 1).contiguous() if self.channels_last else found


class PixelModel(nn.Module):
    """A model behind the normalization of its images.

    Args:
        model: Takes normalized images.
        image_input: The pixels that the result takes.
    """

    def __init__(self, model: TensorIO, image_input: ImageInput) -> None:
        super().__init__()
        self.model = model
        self.channels_last = image_input.channels_last
        channels = len(image_input.mean)
        mean, std = (
            torch.tensor(v, dtype=torch.float64) for v in (image_input.mean, image_input.std)
        )
        weight = torch.diag(1 / (255 * std))
        if image_input.reversed_channels:
            weight = weight.flip(1)
        # All converters read a 1x1 conv, also where the order of channels changes. It stays apart
        # from the first conv of the model, whose padding stands for 0 behind the normalization.
        conv = self.normalize = nn.Conv2d(channels, channels, 1)
        conv.weight = nn.Parameter(weight[:, :, None, None].float(), requires_grad=False)
        conv.bias = nn.Parameter((-mean / std).float(), requires_grad=False)
        self.train(model.training)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the model for pixels in 0..255."""
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        return self.model(self.normalize(images.to(self.normalize.weight.dtype)))


def check_images(example: Sequence[torch.Tensor], image_input: ImageInput) -> None:
    """Check that normalized images are the only input of a model.

    Args:
        example: The input tensors of the model.
        image_input: The pixels that a file shall take.

    Raises:
        ValueError: There are other inputs, or images of another number of channels.
    """
    channels = len(image_input.mean)
    shapes: list[Any] = [tuple(x.shape) for x in example]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != channels:
        raise ValueError(
            f'image_input needs a model with one input (N, {channels}, H, W), as mean and std have '
            f'{channels} channels; its inputs have the shapes {shapes}'
        )
