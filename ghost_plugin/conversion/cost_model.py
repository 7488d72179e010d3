"""What a conv costs, and what its Ghost would."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..layers.ghost import num_ghosted_channels, split_channels
from .inspection import ConvRecord


@dataclass(frozen=True)
class ConvSpec:
    """A conv in numbers.

    Attributes:
        in_channels, out_channels, groups, bias: As in ``nn.Conv2d``.
        kernel_size: One number per dimension.
        pixels: Of an output channel in one forward pass, all calls, per picture; of an input
            channel where the conv is transposed.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int
    bias: bool
    pixels: int

    @classmethod
    def of(cls, found: ConvRecord) -> 'ConvSpec':
        """Of a conv that was watched."""
        conv = found.conv
        return cls(
            conv.in_channels,
            conv.out_channels,
            _sizes(conv.kernel_size),
            getattr(conv, 'groups', 1),
            _has_bias(conv),
            found.pixels,
        )

    @property
    def kind(self) -> str:
        """In words."""
        sizes = 'x'.join(map(str, self.kernel_size))
        groups = f' groups {self.groups}' if self.groups > 1 else ''
        return f'{self.in_channels} to {self.out_channels}, {sizes}{groups}'

    @property
    def taps(self) -> int:
        """Weights of one output map."""
        return self.in_channels // self.groups * math.prod(self.kernel_size)

    def dense(self) -> tuple[int, int]:
        """(parameters, multiply-adds per picture) of the conv."""
        weights = self.out_channels * self.taps
        return weights + self.out_channels * self.bias, self.pixels * weights

    def ghost(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """(parameters, multiply-adds per picture) of its Ghost."""
        primary, ghosts, weights = self._ghost(settings)
        biased = {'depthwise': self.bias, 'linear': True, 'shift': False}[settings['cheap']]
        return weights + primary * self.bias + ghosts * biased, self.pixels * weights

    def _ghost(self, settings: Mapping[str, Any]) -> tuple[int, int, int]:
        """Primary maps and ghost maps that are computed, and the weights behind both."""
        split = self.out_channels, settings['ratio'], self.groups
        primary, copies = split_channels(*split)
        ghosts = num_ghosted_channels(*split) * copies
        side = {'depthwise': settings['dw_size'] ** 2, 'linear': 1, 'shift': 0}[settings['cheap']]
        return primary, ghosts, primary * self.taps + ghosts * side

    def gains(self, settings: Mapping[str, Any]) -> bool:
        """Whether the Ghost has maps to spare and costs fewer multiply-adds."""
        # By weights, because a head may have had no box to run on.
        _, ghosts, weights = self._ghost(settings)
        return ghosts > 0 and weights < self.out_channels * self.taps

    def splits(self, settings: Mapping[str, Any]) -> bool:
        """Whether ghosts can stay in the group of their primary map."""
        primary = split_channels(self.out_channels, settings['ratio'], self.groups)[0]
        return self.groups == 1 or self.out_channels % primary == 0 == primary % self.groups


def _sizes(kernel_size: Any) -> tuple[int, ...]:
    """A kernel size per dimension; convs of other libraries may hold one number."""
    return (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)


def _has_bias(conv: nn.Module) -> bool:
    bias = getattr(conv, 'bias', None)
    bias = bias() if callable(bias) else bias  # quantized convs have a method
    return isinstance(bias, torch.Tensor)
