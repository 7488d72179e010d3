"""Ghost convs in the place of convs, with everything that hung on them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..analysis import call, evaluating
from ..layers.common import init_weights
from ..layers.ghost import GhostConv2d
from .inherit import Correlations, Statistics, from_kernels, inherit

BUDGET = 2**30  # bytes of statistics that one pass over the calibration data may collect


@dataclass(frozen=True)
class Replacement:
    """A conv by name and the settings of its Ghost."""

    name: str
    settings: dict[str, Any]


def replace(
    model: nn.Module,
    replacements: list[Replacement],
    calibration: Iterable[Any] | None,
    inherited: bool,
    seed: int,
) -> dict[str, float | None]:
    """Replace convs in place; all Ghost convs are ready before the first one goes in.

    Returns:
        Relative squared error of each conv's maps, by name; None without inheritance.
    """
    convs = {r.name: model.get_submodule(r.name) for r in replacements}
    wrong = [name for name, conv in convs.items() if type(conv) is not nn.Conv2d]
    if wrong:
        kind = type(convs[wrong[0]]).__name__
        raise ValueError(f'{wrong[0]!r} is a {kind}, only a plain Conv2d can be converted')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ghosts = {r.name: _ghost(convs[r.name], r.settings) for r in replacements}
    fitted = [r for r in replacements if inherited and r.settings['cheap'] == 'depthwise']
    errors: dict[str, float | None] = dict.fromkeys(convs)
    for r, stats in _all_statistics(model, fitted, convs, calibration):
        errors[r.name] = inherit(convs[r.name], ghosts[r.name], stats)
    swap = {id(convs[name]): ghosts[name] for name in convs}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in swap:
                setattr(parent, name, swap[id(child)])
    return errors


def _ghost(conv: nn.Conv2d, settings: dict[str, Any]) -> GhostConv2d:
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
        **settings,
    )
    init_weights(ghost)
    ghost.to(conv.weight).train(conv.training)
    for name, parameter in ghost.named_parameters():
        like = conv.bias if name.endswith('bias') and conv.bias is not None else conv.weight
        parameter.requires_grad_(like.requires_grad)
    if conv.weight.is_contiguous(memory_format=torch.channels_last):
        ghost.to(memory_format=torch.channels_last)
    return ghost


def _all_statistics(
    model: nn.Module,
    replacements: list[Replacement],
    convs: dict[str, nn.Conv2d],
    calibration: Iterable[Any] | None,
) -> Iterator[tuple[Replacement, Correlations]]:
    if calibration is None:
        for r in replacements:
            yield r, from_kernels(convs[r.name], r.settings['dw_size'])
        return
    batches = list(calibration)
    if not batches:
        raise ValueError('calibration holds no batch; leave it out to go without data')
    for part in _within_budget(replacements, convs):
        yield from _measure(model, part, convs, batches)


def _within_budget(
    replacements: list[Replacement], convs: dict[str, nn.Conv2d]
) -> Iterator[list[Replacement]]:
    part: list[Replacement] = []
    used = 0
    for r in replacements:
        size = 4 * convs[r.name].out_channels ** 2 * r.settings['dw_size'] ** 2
        if part and used + size > BUDGET:
            yield part
            part, used = [], 0
        part.append(r)
        used += size
    if part:
        yield part


def _measure(
    model: nn.Module, part: list[Replacement], convs: dict[str, nn.Conv2d], batches: list[Any]
) -> list[tuple[Replacement, Correlations]]:
    statistics = {}
    for r in part:
        conv, side = convs[r.name], r.settings['dw_size']
        constant = conv.bias is not None
        statistics[r.name] = Statistics(conv.out_channels, side, constant, conv.weight.device)
    with _listening(convs, statistics), evaluating(model):
        for batch in batches:
            call(model, batch)
    lost = [name for name, stats in statistics.items() if not stats.pixels]
    if lost:
        raise ValueError(f'the calibration batches never reached {lost[0]!r}; keep it in the plan')
    return [(r, statistics[r.name].correlations()) for r in part]


@contextmanager
def _listening(convs: dict[str, nn.Conv2d], statistics: dict[str, Statistics]) -> Iterator[None]:
    handles = [
        convs[name].register_forward_hook(lambda module, inputs, maps, s=stats: s.add(maps))
        for name, stats in statistics.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
