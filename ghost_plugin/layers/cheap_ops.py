"""Cheap operations, which compute ghost channels from primary channels.

Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), section 3; the shift follows Wu et al.,
Shift, CVPR 2018 (arXiv 1711.08141).

In all of them ghost channel ``o`` is computed from the primary channels of group
``o // ghosts_per_group``; a group is one primary channel unless ``group_size`` says otherwise.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .common import same_padding


def _neighbours() -> list[tuple[int, int]]:
    """The eight directions; a function, because TorchScript cannot iterate a module constant."""
    return [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]


# The eight neighbours as (down, right) in pixels; ghost channel o moves by neighbour o % 8.
NEIGHBOURS = tuple(_neighbours())


class Shift(nn.Module):
    """Moves each channel by one pixel, with zeros at the border; no parameters.

    Args:
        copies: Shifted copies per input channel.

    Shape:
        (N, C, H, W) -> (N, C * copies, H, W), with or without N
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # As repeat_interleave, which ONNX knows from opset 13 on only.
        x = torch.stack([x] * self.copies, dim=-3).flatten(-4, -3)
        channels, height, width = x.shape[-3], x.shape[-2], x.shape[-1]
        # Seven more channels, so that each direction is one strided slice of the same length. The
        # number is constant because exporters would write its computation into the file.
        padded = F.pad(x, (1, 1, 1, 1, 0, 7))
        moved: list[torch.Tensor] = []
        for i, (down, right) in enumerate(_neighbours()):
            top, left = 1 - down, 1 - right
            own = padded[..., i::8, :, :] if i == 7 else padded[..., i : i - 7 : 8, :, :]
            moved.append(own[..., top : top + height, left : left + width])
        return torch.stack(moved, dim=-3).flatten(-4, -3)[..., :channels, :, :]

    def extra_repr(self) -> str:
        return f'copies={self.copies}'


def depthwise(
    channels: int,
    copies: int,
    dw_size: int,
    dilation: int,
    bias: bool,
    padding_mode: str,
    group_size: int,
) -> nn.Conv2d:
    """A ``dw_size`` x ``dw_size`` filter per ghost channel and primary channel of its group.

    Args: As :func:`build_cheap`.
    """
    padding = same_padding(dw_size, dilation)
    # Padding by zero pixels would still copy, and lose the channels-last layout.
    mode: Any = padding_mode if any(padding) else 'zeros'
    return nn.Conv2d(
        channels,
        channels // group_size * copies,
        dw_size,
        padding=padding,
        dilation=dilation,
        groups=channels // group_size,
        bias=bias,
        padding_mode=mode,
    )


def shift(
    channels: int,
    copies: int,
    dw_size: int,
    dilation: int,
    bias: bool,
    padding_mode: str,
    group_size: int,
) -> Shift:
    """A shift by one pixel per ghost channel, without parameters.

    Args: As :func:`build_cheap`; ``group_size`` is 1.
    """
    return Shift(copies)


def linear(
    channels: int,
    copies: int,
    dw_size: int,
    dilation: int,
    bias: bool,
    padding_mode: str,
    group_size: int,
) -> nn.Conv2d:
    """A scale and a bias per ghost channel.

    Args: As :func:`build_cheap`; ``group_size`` is 1.
    """
    return nn.Conv2d(channels, channels * copies, 1, groups=channels, bias=True)


CHEAP = {'depthwise': depthwise, 'shift': shift, 'linear': linear}


def check_dw_size(dw_size: int) -> None:
    """Raise unless ``dw_size`` is a positive odd integer."""
    if not isinstance(dw_size, int) or isinstance(dw_size, bool):
        raise TypeError(f'dw_size must be an odd integer, got {dw_size!r}')
    if dw_size < 1 or dw_size % 2 == 0:
        raise ValueError(f'dw_size must be odd and positive (1, 3, 5, ...), got {dw_size!r}')


def check_group_size(group_size: int | str, cheap: str = 'depthwise') -> None:
    """Raise unless ghosts of a cheap operation can mix so many primary channels.

    Args:
        group_size: Primary channels per group, or ``'all'``.
        cheap: Name of the cheap operation.
    """
    if group_size != 'all':
        if not isinstance(group_size, int | str) or isinstance(group_size, bool):
            raise TypeError(f"group_size must be a positive integer or 'all', got {group_size!r}")
        if isinstance(group_size, str) or group_size < 1:
            raise ValueError(f"group_size must be a positive integer or 'all', got {group_size!r}")
    if group_size != 1 and cheap != 'depthwise':
        raise ValueError(
            f"group_size={group_size!r} needs cheap='depthwise', got cheap={cheap!r}, which allows "
            'group_size=1 only'
        )


def build_cheap(
    kind: str,
    channels: int,
    copies: int,
    dw_size: int = 3,
    dilation: int = 1,
    bias: bool = False,
    padding_mode: str = 'zeros',
    group_size: int = 1,
) -> nn.Module:
    """Build a cheap operation by name.

    Args:
        kind: ``'depthwise'``, ``'shift'`` or ``'linear'``.
        channels: Input (primary) channels.
        copies: Ghosts per group of primary channels; 0 gives a placeholder that is never called.
        dw_size: Size of the depthwise kernel in pixels, odd.
        dilation: Dilation of the depthwise kernel.
        bias: Give the depthwise kernel a bias; ``'linear'`` always has one.
        padding_mode: Padding of the depthwise kernel, as in ``nn.Conv2d``.
        group_size: Primary channels per group, all of which each ghost of the group mixes.

    Raises:
        ValueError: Unknown ``kind``, an even ``dw_size``, or groups with another kind than
            ``'depthwise'``.
    """
    if kind not in CHEAP:
        raise ValueError(f'cheap must be one of {sorted(CHEAP)}, got {kind!r}')
    check_dw_size(dw_size)
    check_group_size(group_size, kind)
    if not copies:
        return nn.Identity()
    return CHEAP[kind](channels, copies, dw_size, dilation, bias, padding_mode, group_size)
