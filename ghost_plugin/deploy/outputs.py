"""Outputs of any nesting as lists of tensors, and how far two of them lie apart."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..analysis import call, evaluating
from .inputs import Inputs


@dataclass(frozen=True)
class Difference:
    """How far outputs lie apart.

    Attributes:
        absolute: Largest difference of a value.
        relative: Largest difference of a value, as a share of the largest value of its tensor.
        typical: Root of the mean squared difference, as a share of that of the values; the worst
            tensor counts.
    """

    absolute: float = 0.0
    relative: float = 0.0
    typical: float = 0.0

    def __or__(self, other: 'Difference') -> 'Difference':
        """The worse of two, figure by figure."""
        return Difference(
            max(self.absolute, other.absolute),
            max(self.relative, other.relative),
            max(self.typical, other.typical),
        )


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a nesting of tuples, lists and mappings, in their order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def differences(got: Any, want: Any) -> Difference:
    """How far ``got`` lies from ``want``; infinitely for other shapes or no numbers."""
    worst = Difference()
    for a, b in zip(tensors(got), tensors(want), strict=True):
        worst |= _of_pair(a.detach(), b.detach())
    return worst


def _of_pair(got: torch.Tensor, want: torch.Tensor) -> Difference:
    far = Difference(*[float('inf')] * 3)
    if got.shape != want.shape:
        return far
    if not want.numel():
        return Difference()
    got, want = got.double().cpu(), want.double().cpu()
    gap = (got - want).abs()
    if not torch.isfinite(gap).all():
        return Difference() if torch.equal(got, want) else far
    largest = want.abs().max().clamp_min(1e-30)
    size = want.square().mean().sqrt().clamp_min(1e-30)
    worst = gap.max()
    return Difference(
        worst.item(), (worst / largest).item(), (gap.square().mean().sqrt() / size).item()
    )


def allowance(model: 'Flat', inputs: Sequence[torch.Tensor], tolerance: float) -> float:
    """How far outputs in float32 may lie apart, as a share of the largest value.

    Where float32 itself loses much, in untrained networks whose maps grow from layer to layer, that
    is ten times what it loses against float64, but never more than a hundredth.
    """
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    try:
        with torch.no_grad():
            exact = Flat(copy.deepcopy(model.model).double(), model.inputs.filled(wide))
            lost = differences(model(*inputs), exact(*wide)).relative
    except Exception:  # some networks know no float64
        return tolerance
    return max(tolerance, min(10 * lost, 0.01))


class Flat(nn.Module):
    """A model that takes tensors and gives a tuple of tensors, whatever its own call looks like.

    Arguments of the example that are no tensors (samples, modes, flags) are handed on as they are.

    Args:
        model: Any module.
        example_input: What it is called with.

    Attributes:
        inputs: The tensors of the example and of other calls.
        names: Of the outputs.
        spec: How the outputs are nested; see :meth:`nested`.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs = Inputs(model, example_input)
        with evaluating(model):
            leaves, self.spec = pytree.tree_flatten(call(model, example_input))
        self.where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self.rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        number = len(self.where)
        self.names = ['output'] if number == 1 else [f'output_{i}' for i in range(number)]
        self.train(model.training)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors(call(self.model, self.inputs.filled(inputs))))

    def nested(self, outputs: Iterable[torch.Tensor]) -> Any:
        """Outputs as the model itself would nest them."""
        leaves = list(self.rest)
        for index, value in zip(self.where, outputs, strict=True):
            leaves[index] = value
        return pytree.tree_unflatten(leaves, self.spec)
