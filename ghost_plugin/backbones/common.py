"""What the bottlenecks of all families are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..layers.bn_folding import Foldable
from ..layers.checkpointing import checkpointed
from ..layers.common import activation, draw_weights, same_padding, second_moment

Norm = Callable[[int], nn.Module]
Act = Callable[..., nn.Module]
BRANCH = 0.5  # variance that the branch of a block adds to its shortcut, with first weights


@dataclass(frozen=True)
class Parts:
    """The choices that hold for every block of a network."""

    norm_layer: Norm = nn.BatchNorm2d
    act_layer: Act = nn.ReLU
    ratio: float = 2
    dw_size: int = 3
    cheap: str = 'depthwise'
    se: bool = True
    zero_init_residual: bool = False

    def ghost(self) -> dict[str, Any]:
        """Keyword arguments of every Ghost module."""
        return dict(
            ratio=self.ratio,
            dw_size=self.dw_size,
            cheap=self.cheap,
            norm_layer=self.norm_layer,
            act_layer=self.act_layer,
        )


class ConvNormAct(Foldable, nn.Module):
    """1x1 conv, norm, activation: the final conv that a classifier head follows.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    folds = (('conv', 'bn1'),)

    def __init__(
        self, in_channels: int, out_channels: int, norm_layer: Norm, act_layer: Act
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = norm_layer(out_channels)
        self.act1 = activation(act_layer)

    def initialize(self, moment: float = 1.0) -> float:
        """Draw first weights for inputs of a mean square; returns that of the outputs."""
        draw_weights(self.conv, moment)
        return second_moment(self.act1, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act1(self.bn1(self.conv(x)))


class Stages(nn.Sequential):
    """Stages one after the other, some of whose outputs are features."""

    def run(
        self, x: torch.Tensor, taps: list[int], depth: int, cheap_from: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The first ``depth`` stages; what they give, and the outputs of those in ``taps``.

        In training, those from ``cheap_from`` on keep no inner maps for backward, which computes
        them again.
        """
        features: list[torch.Tensor] = []
        for index, stage in enumerate(self):
            if index < depth:
                if index >= cheap_from and not torch.jit.is_scripting():
                    x = checkpointed(stage, x)
                else:
                    x = stage(x)
                if index in taps:
                    features.append(x)
        return x, features


def depthwise_norm(
    channels: int, kernel: int, stride: int, dilation: int, norm_layer: Norm
) -> tuple[nn.Conv2d, nn.Module]:
    """Depthwise conv that keeps the map's size up to the stride, and its norm."""
    padding = same_padding(kernel, dilation)
    conv = nn.Conv2d(
        channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
    )
    return conv, norm_layer(channels)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """A rate per block, rising from 0 to ``rate``."""
    return [rate * index / max(depth - 1, 1) for index in range(depth)]
