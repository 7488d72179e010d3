"""Outputs of any nesting as lists of tensors, and how far two of them lie apart."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..utils.modules import as_arguments, call_model, deepcopy_detached, eval_mode
from .flat_io import PLAIN, Inputs


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


def leaves(value: Any) -> list[Any]:
    """What a nesting of tuples, lists, mappings and dataclasses holds, in its order."""
    found = []
    for leaf in pytree.tree_flatten(value)[0]:
        inside = None if isinstance(leaf, torch.Tensor) else _inside(leaf)
        found += [leaf] if inside is None else leaves(list(inside.values()))
    return found


def _inside(leaf: Any) -> dict[Any, Any] | None:
    """The parts of a dataclass or a kind of dict that pytree does not know; None of others."""
    if isinstance(leaf, dict):
        return dict(leaf)
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {field.name: getattr(leaf, field.name) for field in fields(leaf)}
    return None


def nesting(value: Any) -> Callable[[Iterator[Any]], Any]:
    """What nests other leaves as those of a value are nested."""
    known, spec = pytree.tree_flatten(value)
    builds = [_nesting(leaf) for leaf in known]
    return lambda new: pytree.tree_unflatten([build(new) for build in builds], spec)


def _nesting(leaf: Any) -> Callable[[Iterator[Any]], Any]:
    inside = _inside(leaf)
    if inside is None:
        return next
    names, build, kind = list(inside), nesting(list(inside.values())), type(leaf)
    make = kind if isinstance(leaf, dict) else functools.partial(_of_fields, kind)
    return lambda new: make(dict(zip(names, build(new), strict=True)))


def _of_fields(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass as it was; its own construction might ask for more, or change them."""
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a nesting of tuples, lists, mappings and dataclasses, in their order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]


def differences(got: Any, want: Any) -> Difference:
    """How far ``got`` lies from ``want``; infinitely for other shapes or no numbers.

    Raises:
        TypeError: There is no tensor to compare.
    """
    worst, wanted = Difference(), tensors(want)
    if not wanted:
        raise _not_outputs(want)
    for a, b in zip(tensors(got), wanted, strict=True):
        worst |= _of_pair(a.detach(), b.detach())
    return worst


def _not_outputs(found: Any) -> TypeError:
    return TypeError(
        'outputs must be tensors, tuples, mappings or dataclasses of these, with plain values '
        f'beside them at most; got {type(found).__name__}'
    )


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
            exact = Flat(
                deepcopy_detached(model.model, share=True).double(), model.inputs.filled(wide)
            )
            lost = differences(
                call_model(model, tuple(inputs)), call_model(exact, tuple(wide))
            ).relative
    except Exception:  # some networks know no float64
        return tolerance
    return max(tolerance, min(10 * lost, 0.01))


class Flat(nn.Module):
    """A model that takes tensors and gives a tuple of tensors, whatever its own call looks like.

    Arguments of the example that are no tensors (samples, modes, flags) are handed on as they are,
    and outputs that are none (sizes, names) are those of the example.

    Args:
        model: Any module.
        example_input: What it is called with.

    Attributes:
        inputs: The tensors of the example and of other calls.
        names: Of the outputs.
        build: Nests leaves as those of the outputs; see :meth:`nested`.

    Raises:
        TypeError: The example holds no tensor; the outputs hold none, or what may hold some.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs = Inputs(model, example_input)
        with eval_mode(model):
            outputs = call_model(model, example_input)
        found, self.build = leaves(outputs), nesting(outputs)
        strange = [x for x in found if not isinstance(x, (torch.Tensor, *PLAIN))]
        self.where = [i for i, leaf in enumerate(found) if isinstance(leaf, torch.Tensor)]
        if strange or not self.where:
            raise _not_outputs(strange[0] if strange else outputs)
        self.rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in found]
        number = len(self.where)
        self.names = ['output'] if number == 1 else [f'output_{i}' for i in range(number)]
        self.train(model.training)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # No copies here, they would become a part of every file; runners take care of that.
        args, kwargs = as_arguments(self.inputs.filled(inputs))
        found = leaves(self.model(*args, **kwargs))
        if len(found) != len(self.rest):
            raise ValueError(
                f'the model gives {len(found)} outputs here and {len(self.rest)} for the example'
            )
        return tuple(found[index] for index in self.where)  # tracers make tensors of sizes, too

    def nested(self, outputs: Iterable[torch.Tensor]) -> Any:
        """Outputs as the model itself would nest them."""
        filled = list(self.rest)
        for index, value in zip(self.where, outputs, strict=True):
            filled[index] = value
        return self.build(iter(filled))
