"""Attention inside the bottlenecks.

Source: Hu et al., Squeeze-and-Excitation, CVPR 2018 (arXiv 1709.01507), with the hard sigmoid and
the rounding that the GhostNet authors use; parameter names as in timm (Apache-2.0).
"""

from collections.abc import Callable

import torch
from torch import nn

from .common import activation


class SqueezeExcite(nn.Module):
    """Scales every map by a gate that sees the mean of all maps.

    Args:
        channels: Maps in and out.
        reduced: Maps between the two 1x1 convs.
        act_layer: Between the two convs.

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        scale = self.conv_expand(self.act1(self.conv_reduce(scale)))
        return x * self.gate(scale)
