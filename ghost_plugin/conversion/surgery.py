"""Stage 6: build Ghost convs, put them in place of convs, and keep what belonged to these.

This module knows neither plans nor how weights are fitted.
"""

import functools
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..layers.cheap_ops import build_cheap
from ..layers.ghost import GhostConv2d
from .reasons import REASONS, conversion_blocker

_OWN = frozenset(vars(nn.Conv2d(1, 1, 1)))


def build_ghost(conv: nn.Conv2d, settings: Mapping[str, Any]) -> GhostConv2d:
    """Build a fresh Ghost of a conv, with its flags, dtype, device and memory format.

    Args:
        conv: The conv that it stands for.
        settings: ``ratio``, ``dw_size``, ``cheap`` and ``group_size``.
    """
    ghost = GhostConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
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
    # By stride: kernels of one pixel, or of one input channel, are contiguous in either sense.
    strides = torch.empty_like(conv.weight, memory_format=torch.channels_last).stride()
    if conv.weight.stride() == strides and conv.weight[0].numel() > 1:
        ghost.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, value in vars(conv).items():  # attributes that other code has set on the conv
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


def has_settings(ghost: GhostConv2d, settings: Mapping[str, Any]) -> bool:
    """Say if a Ghost conv was built with these settings.

    Args:
        ghost: A Ghost conv.
        settings: ``ratio``, ``dw_size``, ``cheap`` and ``group_size``.
    """
    conv, group_size = ghost.primary_conv, settings.get('group_size', 1)
    if ghost.ghosts_per_group and ghost.group_size != (
        ghost.primary if group_size == 'all' else group_size
    ):
        return False
    cheap = build_cheap(
        settings['cheap'],
        ghost.num_ghosted,
        ghost.ghosts_per_group,
        settings['dw_size'],
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        group_size=ghost.group_size,
    )
    return (ghost.ratio, repr(ghost.cheap_operation)) == (settings['ratio'], repr(cheap))


def build_ghosts(
    model: nn.Module, settings: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, GhostConv2d]:
    """Build fresh Ghosts of convs; the random state of the process stays.

    Args:
        model: The network.
        settings: ``ratio``, ``dw_size``, ``cheap`` and ``group_size`` by the conv's name.
        seed: Seed of the weights.

    Raises:
        ValueError: A name is not a conv that can be converted.
    """
    convs: dict[str, Any] = {name: model.get_submodule(name) for name in settings}
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


def check_forwards(model: nn.Module) -> None:
    """Raise when a module has a forward of its own that would go on calling the original."""
    for name, module in model.named_modules():
        if _binds_original(vars(module).get('forward')):
            raise ValueError(
                f'{name!r} ({type(module).__name__}) has a forward of its own, which a copy would '
                'share with the original; use inplace=True, or give it the forward in a subclass'
            )


def _binds_original(function: Any) -> bool:
    """Say if a function holds references that copies of it would go on holding."""
    if isinstance(function, functools.partial):
        return any(
            map(_binds_original, (function.func, *function.args, *function.keywords.values()))
        )
    return bool(isinstance(function, weakref.ref) or getattr(function, '__closure__', None))


def replace_modules(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """Replace modules in place, wherever the old ones stand.

    Args:
        model: The network.
        new: New modules by the names of the old ones.

    Returns:
        The network, or the new module that replaces it as a whole.
    """
    by_id = {id(model.get_submodule(name)): module for name, module in new.items()}
    if id(model) in by_id:
        return by_id[id(model)]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
    return model


def shift_running_mean(norm: nn.Module, shift: torch.Tensor) -> None:
    """Let a norm add a shift to its input.

    Args:
        norm: A norm with running statistics, changed in place.
        shift: (channels,).
    """
    mean: Any = norm.running_mean
    mean -= shift.to(mean)


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


def _successors(conv: Any, ghost: nn.Module) -> Iterator[tuple[nn.Parameter, list[nn.Parameter]]]:
    """Pairs of an old parameter and its new ones; groups may treat biases in another way."""
    named = list(ghost.named_parameters())
    biases = [p for name, p in named if name.endswith('bias') and conv.bias is not None]
    separate = {id(p) for p in biases}
    yield conv.weight, [p for _, p in named if id(p) not in separate]
    if conv.bias is not None:
        yield conv.bias, biases
