"""Ghost convs in the place of convs: built, put in, and everything that hung on a conv kept."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..layers.cheap_ops import build_cheap
from ..layers.ghost import GhostConv2d
from .dense_checkpoints import convert_dense_weights
from .selection import REASONS, conversion_blocker

_OWN = frozenset(vars(nn.Conv2d(1, 1, 1)))


def build_ghost(conv: nn.Conv2d, settings: Mapping[str, Any]) -> GhostConv2d:
    """A fresh Ghost of a conv, with its flags, dtype, device and memory format."""
    ghost = GhostConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        permuted=True,
        conv_layer=type(conv),
        **settings,
    )
    if not conv.weight.is_meta:
        _draw(ghost.primary_conv, conv)
    ghost.to(conv.weight).train(conv.training)
    for name, parameter in ghost.named_parameters():
        like = conv.bias if name.endswith('bias') and conv.bias is not None else conv.weight
        parameter.requires_grad_(like.requires_grad)
    if _channels_last(conv.weight):
        ghost.to(memory_format=torch.channels_last)
    ghost.convert_dense_weights = convert_dense_weights
    for name, value in vars(conv).items():  # what others have noted on the conv
        if name not in _OWN and not hasattr(ghost, name):
            setattr(ghost, name, value)
    return ghost


@torch.no_grad()
def _draw(primary: nn.Conv2d, conv: nn.Conv2d) -> None:
    """Draw first weights as large as those of a conv, whose outputs then vary as much."""
    scale = conv.weight.float().square().mean().sqrt()
    primary.weight.normal_().mul_(scale.to(primary.weight))
    if primary.bias is not None:
        primary.bias.zero_()


def fits(ghost: GhostConv2d, settings: Mapping[str, Any]) -> bool:
    """Whether a Ghost conv has these settings."""
    conv = ghost.primary_conv
    cheap = build_cheap(
        settings['cheap'],
        ghost.num_ghosted,
        ghost.ghosts_per_primary,
        settings['dw_size'],
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    return (ghost.ratio, repr(ghost.cheap_operation)) == (settings['ratio'], repr(cheap))


def _channels_last(weight: torch.Tensor) -> bool:
    # By stride: kernels of one pixel, or of one input map, are contiguous in either sense.
    strides = torch.empty_like(weight, memory_format=torch.channels_last).stride()
    return weight.stride() == strides and weight[0].numel() > 1


def build_ghosts(
    model: nn.Module, settings: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, GhostConv2d]:
    """Fresh Ghosts of the named convs; the random state of the process stays.

    Raises:
        ValueError: A name is not a conv that can be converted.
    """
    convs = {name: model.get_submodule(name) for name in settings}
    for name, conv in convs.items():
        if code := conversion_blocker(conv):
            kind = type(conv).__name__
            raise ValueError(f'{name!r}, a {kind}, cannot be converted ({code}): {REASONS[code]}')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ghosts = {name: build_ghost(conv, settings[name]) for name, conv in convs.items()}
    for name, ghost in ghosts.items():
        ghost.dense_name = name
    return ghosts


def replace_modules(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """Put modules in by name, wherever the old ones stand, in place; a root is handed back."""
    by_id = {id(model.get_submodule(name)): module for name, module in new.items()}
    if id(model) in by_id:
        return by_id[id(model)]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
    return model


def shift_running_mean(norm: nn.Module, shift: torch.Tensor) -> None:
    """Let a norm add ``shift``, (channels,), to the maps that it gets."""
    norm.running_mean -= shift.to(norm.running_mean)


def update_optimizers(
    optimizers: Iterable[torch.optim.Optimizer],
    pairs: Iterable[tuple[nn.Module, nn.Module]],
) -> None:
    """Put new parameters where the old ones stood in optimizers; their state starts afresh.

    Args:
        optimizers: Built before the conversion.
        pairs: Dense convs and their Ghosts.
    """
    new = {id(old): fresh for conv, ghost in pairs for old, fresh in _successors(conv, ghost)}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            kept: list[nn.Parameter] = []
            for parameter in group['params']:
                if id(parameter) in new:
                    optimizer.state.pop(parameter, None)
                kept += new.get(id(parameter), [parameter])
            group['params'] = kept


def _successors(
    conv: nn.Module, ghost: nn.Module
) -> Iterator[tuple[nn.Parameter, list[nn.Parameter]]]:
    """Old parameters and the new ones that stand for each; groups may treat biases apart."""
    named = list(ghost.named_parameters())
    biases = [p for name, p in named if name.endswith('bias') and conv.bias is not None]
    apart = {id(p) for p in biases}
    yield conv.weight, [p for _, p in named if id(p) not in apart]
    if conv.bias is not None:
        yield conv.bias, biases
