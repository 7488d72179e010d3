"""Constant forms of the channel permutations that are left in a fused model, for one file.

Indexing is fastest in ONNX Runtime, OpenVINO and PyTorch. Converters of other runtimes do not
support it or misread it: pnnx converts an ONNX ``Gather`` wrongly, without an error. All of them
support convolutions. The same holds for the strided slices of shifts.
"""

import copy
import functools
from collections.abc import Iterator

import torch
from torch import nn

from ..graph.symbolic_trace import GHOST_CONVS
from ..layers.bn_folding import has_hooks_or_parametrization, is_standard_conv
from ..layers.cheap_ops import NEIGHBOURS, Shift
from ..layers.ghost import Ghost
from ..layers.permutation import Permuted
from ..utils.modules import deepcopy_detached


def with_constant_permutations(model: nn.Module, convolutions: bool) -> nn.Module:
    """Copy a model, with constants in place of its channel permutations.

    Args:
        model: It stays unchanged.
        convolutions: Use convolutions, the cheaper of two kinds: the expanded Ghost layer
            (:func:`_expanded`), or a 1x1 convolution after it with a single 1 in each row.
            Shifts become depthwise convolutions, too. Otherwise use indexing.

    Returns:
        The copy, whose layers ignore their ``order``; the model itself if nothing is to be done.
    """
    shifts = any(isinstance(m, Shift) for m in model.modules())
    if not _permuted(model) and not (convolutions and shifts):
        return model
    model = deepcopy_detached(model)
    if convolutions:
        _replace_shifts(model)
    for layer in _permuted(model):
        order = layer.order.clone()
        if not convolutions:
            layer.permute = functools.partial(torch.index_select, dim=-3, index=order)
            continue
        convs = list(_expanded(layer, order))
        if convs and _cost(convs) - _cost(_convs(layer)) < len(order) * layer.num_computed():
            # A layer without ghosts returns the output of its primary conv.
            layer.primary_conv = nn.Sequential(*convs)
            layer.ghosts_per_group, layer.order = 0, None
        else:
            like = next(layer.primary_conv.parameters())
            weight = torch.eye(layer.num_computed()).to(like)[order, :, None, None]
            layer.permute = functools.partial(torch.conv2d, weight=weight)
    return model


def _replace_shifts(model: nn.Module) -> None:
    """Put depthwise convs of 3x3 pixels with a single 1 in the place of shifts."""
    for layer in [m for m in model.modules() if isinstance(m, Ghost)]:
        cheap = layer.cheap_operation
        holder, name = (
            (cheap, '0') if isinstance(cheap, nn.Sequential) else (layer, 'cheap_operation')
        )
        if not isinstance(getattr(holder, name, None), Shift):
            continue
        inputs, copies = layer.num_ghosted, layer.ghosts_per_group
        conv = nn.Conv2d(inputs, inputs * copies, 3, padding=1, groups=inputs, bias=False)
        weight = torch.zeros_like(conv.weight)
        for index, kernel in enumerate(weight):
            down, right = NEIGHBOURS[index % len(NEIGHBOURS)]
            kernel[0, 1 - down, 1 - right] = 1
        conv.weight = nn.Parameter(weight.to(next(layer.primary_conv.parameters())), False)
        setattr(holder, name, conv.train(layer.training))


def _permuted(model: nn.Module) -> list[Permuted]:
    return [m for m in model.modules() if isinstance(m, Permuted) and m.order is not None]


def _convs(layer: Permuted) -> list[nn.Module]:
    return [layer.primary_conv, *([layer.cheap_operation] if layer.ghosts_per_group else [])]


def _cost(convs: list[nn.Conv2d]) -> int:
    """Count multiply-adds for one pixel of the outputs."""
    return sum(conv.weight.numel() for conv in convs)


@torch.no_grad()
def _expanded(layer: Permuted, order: torch.Tensor) -> Iterator[nn.Conv2d]:
    """Make a primary and a depthwise conv that compute all outputs in their order, if possible.

    The primary conv repeats a channel for each of its ghosts, at the place of the ghost; the
    depthwise kernel of a primary output is the identity. There is no concatenation.

    Args:
        layer: A Ghost conv with an order.
        order: (out_channels,) int64.
    """
    convs, size = _convs(layer), len(order)
    if not isinstance(layer, GHOST_CONVS) or not all(
        is_standard_conv(c) and not has_hooks_or_parametrization(c) for c in convs
    ):
        return  # such as shifts, other padding modes, masks
    if layer.group_size > 1:
        return  # a ghost would need copies of several primary channels
    primary, copies = layer.primary, max(layer.ghosts_per_group, 1)
    is_primary = order < primary
    source = torch.where(is_primary, order, (order - primary) // copies)
    groups = layer.primary_conv.groups
    place = torch.arange(size, device=order.device) * groups // size
    if size % groups or not torch.equal(source * groups // primary, place):
        return  # an output would read the inputs of another group
    yield _with(layer.primary_conv, layer.primary_conv.weight[source], _rows(convs[0], source))
    if not layer.ghosts_per_group:
        return
    cheap = layer.cheap_operation
    ghosts = (order - primary).clamp_min(0)
    middle = torch.zeros_like(cheap.weight[0])
    middle[0, middle.shape[1] // 2, middle.shape[2] // 2] = 1
    scale, shift = (_step(layer, name, primary, source) for name in ('scale', 'shift'))
    kept = middle if scale is None else middle * scale[:, None, None, None]
    weight = torch.where(is_primary[:, None, None, None], kept, cheap.weight[ghosts])
    bias = _rows(cheap, ghosts)
    if bias is not None or shift is not None:
        own = torch.zeros(size).to(weight) if shift is None else shift
        bias = torch.where(is_primary, own, torch.zeros_like(own) if bias is None else bias)
    yield _with(cheap, weight, bias, groups=size)


def _rows(conv: nn.Conv2d, rows: torch.Tensor) -> torch.Tensor | None:
    return None if conv.bias is None else conv.bias[rows]


def _step(layer: Permuted, name: str, primary: int, source: torch.Tensor) -> torch.Tensor | None:
    """Return the scale or shift of a folded Ghost conv for every output."""
    step = getattr(layer, name, None)
    return None if step is None else step.expand(primary, 1, 1).flatten()[source]


def _with(
    conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None, groups: int | None = None
) -> nn.Conv2d:
    """Copy a conv with other weights."""
    made = copy.deepcopy(conv)
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    made.out_channels = len(weight)
    if groups is not None:
        made.groups = made.in_channels = groups
    return made
