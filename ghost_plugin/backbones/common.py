"""Common parts of all backbones."""

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
BRANCH_VARIANCE = 0.5  # added by the branch of a block to its shortcut, with initial weights


@dataclass(frozen=True)
class Parts:
    """Options of every block of a network."""

    norm_layer: Norm = nn.BatchNorm2d
    act_layer: Act = nn.ReLU
    ratio: float = 2
    dw_size: int = 3
    cheap: str = 'depthwise'
    group_size: int | str = 1
    se: bool = True
    zero_init_residual: bool = False

    def ghost(self) -> dict[str, Any]:
        """Keyword arguments of every Ghost module."""
        return dict(
            ratio=self.ratio,
            dw_size=self.dw_size,
            cheap=self.cheap,
            group_size=self.group_size,
            norm_layer=self.norm_layer,
            act_layer=self.act_layer,
        )


class ConvNormAct(Foldable):
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
        """Draw initial weights for inputs of a mean square; returns that of the outputs."""
        draw_weights(self.conv, moment)
        return second_moment(self.act1, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act1(self.bn1(self.conv(x)))


class Stages(nn.Sequential):
    """Consecutive stages, some of whose outputs are returned."""

    def run(
        self, x: torch.Tensor, taps: list[int], depth: int, cheap_from: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the first ``depth`` stages.

        Args:
            x: (N, C, H, W).
            taps: Indices of stages whose outputs are returned.
            depth: Number of stages that run.
            cheap_from: In training, stages from this index on keep no activations; backward
                computes them again.

        Returns:
            The output of the last stage that ran, and those of the stages in ``taps``.
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
    """A depthwise conv that keeps height and width up to the stride, and its norm.

    Args:
        channels: Number of channels.
        kernel, stride, dilation: As in ``nn.Conv2d``, pixels.
        norm_layer: Called with the number of channels.
    """
    padding = same_padding(kernel, dilation)
    conv = nn.Conv2d(
        channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
    )
    return conv, norm_layer(channels)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth rates of ``depth`` blocks, rising linearly from 0 to ``rate``.

    Args:
        rate: Rate of the last block.
        depth: Number of blocks.
    """
    return [rate * index / max(depth - 1, 1) for index in range(depth)]
