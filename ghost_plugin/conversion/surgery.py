"""Ghost convs in the place of convs: built, put in, and everything that hung on a conv kept."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..layers.common import init_weights
from ..layers.ghost import GhostConv2d
from .loading import adopt
from .selection import plain


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
    init_weights(ghost)
    ghost.to(conv.weight).train(conv.training)
    for name, parameter in ghost.named_parameters():
        like = conv.bias if name.endswith('bias') and conv.bias is not None else conv.weight
        parameter.requires_grad_(like.requires_grad)
    if not conv.weight.is_meta and conv.weight.is_contiguous(memory_format=torch.channels_last):
        ghost.to(memory_format=torch.channels_last)
    ghost.adopt = adopt
    return ghost


def build_ghosts(
    model: nn.Module, settings: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, GhostConv2d]:
    """Fresh Ghosts of the named convs; the random state of the process stays.

    Raises:
        ValueError: A name is not a conv that can be converted.
    """
    convs = {name: model.get_submodule(name) for name in settings}
    for name, conv in convs.items():
        if not (isinstance(conv, nn.Conv2d) and plain(conv)):
            kind = type(conv).__name__
            raise ValueError(f'{name!r} is a {kind}, only a plain Conv2d can be converted')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: build_ghost(conv, settings[name]) for name, conv in convs.items()}


def swap(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """Put modules in by name, wherever the old ones stand, in place; a root is handed back."""
    by_id = {id(model.get_submodule(name)): module for name, module in new.items()}
    if id(model) in by_id:
        return by_id[id(model)]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
    return model


def absorb(norm: nn.Module, shift: torch.Tensor) -> None:
    """Let a norm add ``shift``, (channels,), to the maps that it gets."""
    norm.running_mean -= shift.to(norm.running_mean)


def repair(
    optimizers: Iterable[torch.optim.Optimizer],
    pairs: Iterable[tuple[nn.Module, nn.Module]],
) -> None:
    """Put new parameters where the old ones stood in optimizers; their state starts afresh.

    Args:
        optimizers: Built before the conversion.
        pairs: Dense convs and their Ghosts.
    """
    new = {id(p): ghost for conv, ghost in pairs for p in conv.parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            kept: list[nn.Parameter] = []
            placed: set[int] = set()
            for parameter in group['params']:
                ghost = new.get(id(parameter))
                if ghost is None:
                    kept.append(parameter)
                    continue
                optimizer.state.pop(parameter, None)
                if id(ghost) not in placed:
                    placed.add(id(ghost))
                    kept.extend(ghost.parameters())
            group['params'] = kept
