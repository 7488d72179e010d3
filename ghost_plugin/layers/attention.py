"""Attention inside the bottlenecks; parameter names as in timm (Apache-2.0)."""

from collections.abc import Callable

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from .common import activation, draw_weights, same_padding, second_moment
from .norm import pooled_norm

GATE_VARIANCE = 0.03  # in front of the gates of squeeze-excite, with initial weights


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate that depends on the means of all channels.

    Source: Hu et al., Squeeze-and-Excitation, CVPR 2018 (arXiv 1709.01507), with the hard sigmoid
    and the rounding that the GhostNet authors use.

    Args:
        channels: Input and output channels.
        reduced: Channels between the two 1x1 convs.
        act_layer: Activation between the two convs.

    Shape:
        (N, channels, H, W) -> (N, channels, H, W)
    """

    def __init__(
        self, channels: int, reduced: int, act_layer: Callable[..., nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.act1 = activation(act_layer)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)
        self.gate = nn.Hardsigmoid()
        self.initialize()

    def initialize(self, moment: float = 1.0) -> float:
        """Draw initial weights for inputs of a mean square; returns that of the outputs.

        No norm follows, so the gates start near one half: with other gates the lag of the running
        statistics would grow from block to block.
        """
        draw_weights(self.conv_reduce, moment)
        draw_weights(self.conv_expand, second_moment(self.act1, 1.0), GATE_VARIANCE)
        return moment * second_moment(self.gate, GATE_VARIANCE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        scale = self.conv_expand(self.act1(self.conv_reduce(scale)))
        return x * self.gate(scale)


@torch.fx.wrap  # control flow depends on sizes
def half_size(x: torch.Tensor) -> torch.Tensor:
    """Means of 2 x 2 pixels; a height or width of one pixel stays."""
    window = (min(2, x.shape[2]), min(2, x.shape[3]))
    return F.avg_pool2d(x, window, window)


def _strip_conv(channels: int, kernel_size: tuple[int, int]) -> nn.Conv2d:
    padding = same_padding(kernel_size)
    return nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels, bias=False)


class DFCAttention(nn.Sequential):
    """Scales every pixel by a gate that depends on its row and column, at half resolution.

    Source: Tang et al., GhostNetV2, NeurIPS 2022 (arXiv 2211.12905), section 3.2, decoupled fully
    connected attention with kernels of 5 pixels, as in the authors' code.

    Args:
        in_channels: Channels that the gate is computed from.
        out_channels: Channels that it scales.
        norm_layer: Called with the number of channels.

    Shape:
        (N, in_channels, H, W), (N, out_channels, H, W) -> (N, out_channels, H, W). A height
        or width of one pixel is not halved, so that any size works.
    """

    folds = (('0', '1'), ('2', '3'), ('4', '5'))

    def __init__(
        self, in_channels: int, out_channels: int, norm_layer: Callable[[int], nn.Module]
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            pooled_norm(norm_layer, out_channels),
            _strip_conv(out_channels, (1, 5)),
            pooled_norm(norm_layer, out_channels),
            _strip_conv(out_channels, (5, 1)),
            pooled_norm(norm_layer, out_channels),
        )
        self.initialize()

    def initialize(self, moment: float = 1.0) -> float:
        """Draw initial weights for inputs of a mean square; returns that of the gate."""
        for index, conv in enumerate((self[0], self[2], self[4])):
            draw_weights(conv, 1.0 if index else moment)
        return second_moment(nn.Sigmoid(), 1.0)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """Scale ``features`` by the gate of ``x``.

        Args:
            x: (N, in_channels, H, W).
            features: (N, out_channels, H, W).
        """
        gate = half_size(x)
        for layer in self:
            gate = layer(gate)
        size = (features.shape[2], features.shape[3])
        return features * F.interpolate(torch.sigmoid(gate), size=size, mode='nearest')
