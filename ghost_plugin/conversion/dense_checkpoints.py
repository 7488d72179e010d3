"""Weights of the dense network, converted while they load into the converted one."""

from typing import Any

import torch
from torch import nn

from ..layers.ghost import GhostConv2d
from ..utils.modules import deepcopy_detached, plain_forward
from .fitting.channel_statistics import moments_from_weights
from .fitting.initialization import filter_size, initialize_ghost


@plain_forward()
def convert_dense_weights(ghost: GhostConv2d, weights: dict[str, Any], prefix: str) -> None:
    """Replace a dense conv's tensors in a state dict by those of its Ghost, fitted without data.

    Args:
        ghost: A Ghost of a converted network; it is left as it is.
        weights: A state dict, changed in place.
        prefix: Prefix of the conv's names in it.

    Raises:
        ValueError: The dense conv has another shape, or a bias more or less.
    """
    weight, bias = weights.pop(f'{prefix}weight'), weights.pop(f'{prefix}bias', None)
    try:
        conv = dense_like(ghost, weight, bias)
    except ValueError as error:
        raise ValueError(f'{prefix.removesuffix(".") or "the conv"!r}: {error}') from None
    twin = _twin(ghost, weight)
    initialize_ghost(conv, twin, moments_from_weights(conv, filter_size(twin)))
    weights.update({f'{prefix}{name}': tensor for name, tensor in twin.state_dict().items()})


adopt = convert_dense_weights  # the name in pickles of version 0.1


def _twin(ghost: GhostConv2d, weight: torch.Tensor) -> Any:
    """A copy to be filled, on the device of ``weight``, as assigned tensors stay there."""
    twin: Any = deepcopy_detached(ghost, share=True)
    if twin.primary_conv.weight.is_meta:
        twin.to_empty(device=weight.device)
        twin.order = torch.arange(twin.out_channels)
    return twin.to(weight)


def dense_like(ghost: GhostConv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """Build the dense conv that a Ghost stands for.

    Args:
        ghost: The Ghost.
        weight: (out_channels, in_channels / groups, height, width).
        bias: (out_channels,), if the conv has one.

    Raises:
        ValueError: A weight of another shape, or a bias more or less.
    """
    primary = ghost.primary_conv
    conv = nn.Conv2d(
        ghost.in_channels,
        ghost.out_channels,
        ghost.kernel_size,
        ghost.stride,
        ghost.padding,
        ghost.dilation,
        ghost.groups,
        primary.bias is not None,
        primary.padding_mode,
    ).to(weight)
    if conv.weight.shape != weight.shape or (bias is None) != (conv.bias is None):
        raise ValueError(
            f'the dense weight {tuple(weight.shape)} with{"out" if bias is None else ""} bias does '
            f'not fit a Ghost of {tuple(conv.weight.shape)} with'
            f'{"out" if conv.bias is None else ""} bias'
        )
    with torch.no_grad():
        conv.weight.copy_(weight)
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
    return conv
