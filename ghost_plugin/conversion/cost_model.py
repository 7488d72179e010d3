"""Parameters and multiply-adds of a conv and of its Ghost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..layers.ghost import GhostLayout, ghost_layout, split_channels


@dataclass(frozen=True)
class ConvSpec:
    """The sizes of a conv that its cost depends on.

    Attributes:
        in_channels, out_channels, groups, bias: As in ``nn.Conv2d``.
        kernel_size: One size per dimension.
        pixels: Positions of an output channel in one forward pass, all calls, per image; of an
            input channel where the conv is transposed.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int
    bias: bool
    pixels: int

    @classmethod
    def from_conv(cls, conv: nn.Module, pixels: int) -> 'ConvSpec':
        """Read the sizes of a convolution, also of one from another library.

        Args:
            conv: Any convolution.
            pixels: As in :class:`ConvSpec`.
        """
        size: Any = conv.kernel_size
        bias: Any = getattr(conv, 'bias', None)
        bias = bias() if callable(bias) else bias  # quantized convs have a method
        return cls(
            in_channels=conv.in_channels,  # type: ignore[arg-type]
            out_channels=conv.out_channels,  # type: ignore[arg-type]
            kernel_size=(size,) * 2 if isinstance(size, int) else tuple(size),
            groups=getattr(conv, 'groups', 1),
            bias=isinstance(bias, torch.Tensor),
            pixels=pixels,
        )

    @property
    def kind(self) -> str:
        """The sizes in words."""
        sizes = 'x'.join(map(str, self.kernel_size))
        groups = f' groups {self.groups}' if self.groups > 1 else ''
        return f'{self.in_channels} to {self.out_channels}, {sizes}{groups}'

    @property
    def taps(self) -> int:
        """Weights of one output channel."""
        return self.in_channels // self.groups * math.prod(self.kernel_size)

    def dense(self) -> tuple[int, int]:
        """(parameters, multiply-adds per image) of the conv."""
        weights = self.out_channels * self.taps
        return weights + self.out_channels * self.bias, self.pixels * weights

    def ghost(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """(parameters, multiply-adds per image) of its Ghost."""
        layout, weights = self.layout(settings), self._ghost_weights(settings)
        biased = {'depthwise': self.bias, 'linear': True, 'shift': False}[settings['cheap']]
        biases = layout.primary * self.bias + layout.ghosts * biased
        return weights + biases, self.pixels * weights

    def layout(self, settings: Mapping[str, Any]) -> GhostLayout:
        """Numbers of channels of its Ghost.

        Raises:
            ValueError: Its groups or channels do not allow the ``group_size``.
        """
        group_size = settings.get('group_size', 1)
        return ghost_layout(self.out_channels, settings['ratio'], self.groups, group_size)

    def _ghost_weights(self, settings: Mapping[str, Any]) -> int:
        layout = self.layout(settings)
        taps = {'depthwise': settings['dw_size'] ** 2, 'linear': 1, 'shift': 0}[settings['cheap']]
        return layout.primary * self.taps + layout.ghosts * layout.group_size * taps

    def ghost_saves(self, settings: Mapping[str, Any]) -> bool:
        """Say if the Ghost has ghost channels and costs fewer multiply-adds."""
        # By weights, because a head may have had no box to run on.
        weights = self._ghost_weights(settings)
        return self.layout(settings).ghosts > 0 and weights < self.out_channels * self.taps

    def settings_blocker(self, settings: Mapping[str, Any]) -> str:
        """Return the code of ``REASONS`` why its Ghost cannot have these settings, '' if it can."""
        primary = split_channels(self.out_channels, settings['ratio'], self.groups)[0]
        if self.groups > 1 and (self.out_channels % primary or primary % self.groups):
            return 'groups'  # ghosts cannot stay in the group of their primary channel
        try:
            self.layout(settings)
        except ValueError:
            return 'group_size'
        return ''
