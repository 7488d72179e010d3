"""Halves of Ghost layers that PyTorch joins only where something reads them as a whole.

What :mod:`halves` does to a file, while a model runs. A joined tensor costs a pass over both halves
and, where large, memory that the system maps anew at each call.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ...graph.channel_permutation import CHANNELWISE, TOGETHER, is_spatial
from ...layers.ghost import Ghost

# Numbers below which more and smaller kernels cost more than the joining: GhostNet 1.0x at 224 px,
# batch 4, 2 threads, traced, took 17.9 ms with this one, 20.7 with 0, 19.9 with a million and 24.4
# joined. At batch 1 all lie within 5 per cent, but for 0, which is slower.
LEAST = 500_000


class Conv2d(NamedTuple):
    """A call of ``torch.conv2d``."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class Halves(torch.Tensor):
    """Maps in parts, (N, C, H, W) as one; a function that has no way with parts joins them.

    Args:
        parts: (N, C_i, H, W) each; functions that work in place work on them.
    """

    @staticmethod
    def __new__(cls, parts: Sequence[torch.Tensor]) -> 'Halves':
        batch, _, *sides = parts[0].shape
        shape = (batch, sum(part.shape[1] for part in parts), *sides)
        like = {'dtype': parts[0].dtype, 'device': parts[0].device}
        return torch.Tensor._make_wrapper_subclass(cls, shape, **like)

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        self.parts = list(parts)

    def whole(self) -> torch.Tensor:
        """All maps; from now on they are one part."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, 1)]
        return self.parts[0]

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = next((x for x in args if isinstance(x, Halves) and len(x.parts) > 1), None)
        if func in _WAYS and given is not None:
            made = _WAYS[func](func, _sizes(given), *args, **kwargs)
            if made is not None:
                return made
        return func(*map(joined, args), **{name: joined(x) for name, x in kwargs.items()})

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise NotImplementedError(f'{func} reads halves of Ghost layers without joining them')


class Joiner:
    """Stands for :meth:`Ghost.concat` in layers whose halves may stay apart.

    Attributes:
        apart: How often they did.
    """

    def __init__(self) -> None:
        self.apart = 0

    def __call__(self, primary: torch.Tensor, ghosts: torch.Tensor) -> torch.Tensor:
        """Maps of both."""
        maps = _together([primary, ghosts])
        self.apart += isinstance(maps, Halves)
        return maps


def keep_apart(model: nn.Module) -> Joiner:
    """Let Ghost layers of a model in eval mode join as late as possible, in place."""
    joiner = Joiner()
    for layer in model.modules():
        if isinstance(layer, Ghost) and layer.ghosts_per_primary and not layer.needs_crop:
            layer.concat = joiner
    return joiner


def _together(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    large = sum(part.numel() for part in parts) >= LEAST
    return Halves(parts) if large and parts[0].dim() == 4 else torch.cat(tuple(parts), -3)


def joined(value: Any) -> Any:
    """An argument without halves in it."""
    if isinstance(value, list | tuple):
        return type(value)(map(joined, value)) if type(value) in (list, tuple) else value
    return value.whole() if isinstance(value, Halves) else value


def _sizes(halves: Halves) -> list[int]:
    """Channels of each part; numbers to a tracer, too, so that weights are split once for all."""
    return [int(part.shape[1]) for part in halves.parts]


def _each(func: Callable, sizes: list[int], *args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The same for each part."""
    split = [_parts(value, sizes) for value in args]
    named = {name: _parts(value, sizes) for name, value in kwargs.items()}
    made = [
        func(*(parts[i] for parts in split), **{name: parts[i] for name, parts in named.items()})
        for i in range(len(sizes))
    ]
    return _together(made) if isinstance(made[0], torch.Tensor) else None  # pools may give places


def _parts(value: Any, sizes: list[int]) -> Sequence[Any]:
    """An argument for each part."""
    if isinstance(value, Halves):
        if _sizes(value) == sizes:
            return value.parts
        value = value.whole()
    if isinstance(value, torch.Tensor) and value.dim() >= 3 and value.shape[-3] > 1:
        return value.split(sizes, -3)
    return [value] * len(sizes)


def _conv(func: Callable, sizes: list[int], *args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Of all maps the sum over parts; of each map alone each part alone."""
    call = Conv2d(*args, **kwargs)
    how, parts = call[3:6], call.x.parts
    if call.groups == 1:
        first, *others = zip(parts, call.weight.split(sizes, 1), strict=True)
        total = func(*first, call.bias, *how)
        for part, own in others:
            total += func(part, own, None, *how)
        return total
    if call.groups != sum(sizes):
        return None
    rows = [size * (len(call.weight) // call.groups) for size in sizes]
    biases = [None] * len(sizes) if call.bias is None else call.bias.split(rows)
    each = zip(parts, call.weight.split(rows), biases, sizes, strict=True)
    return _together([func(part, own, b, *how, size) for part, own, b, size in each])


def _mean(
    func: Callable, sizes: list[int], x: torch.Tensor, dim: Any = None, *args: Any, **kwargs: Any
) -> torch.Tensor | None:
    """Of the pixels of each map."""
    if not is_spatial(dim):
        return None
    return torch.cat([func(part, dim, *args, **kwargs) for part in x.parts], 1)


def _shape(
    func: Callable, sizes: list[int], x: torch.Tensor, dim: int | None = None
) -> torch.Size | int:
    """Of the whole."""
    batch, _, *sides = map(int, x.parts[0].shape)
    shape = torch.Size((batch, sum(sizes), *sides))
    return shape if dim is None else shape[dim]


def _fact(func: Callable, sizes: list[int], x: torch.Tensor) -> Any:
    """What is the same of each part."""
    return func(x.parts[0])


def _functions(names: set) -> set[Callable]:
    """Functions, by themselves or by their names as methods; classes are left out."""
    found = (getattr(torch.Tensor, name) if isinstance(name, str) else name for name in names)
    return {function for function in found if not inspect.isclass(function)}


_FACTS = [getattr(torch.Tensor, name).__get__ for name in ('ndim', 'dtype', 'device')]
_WAYS: dict[Callable, Callable] = {
    **dict.fromkeys(_functions(CHANNELWISE | TOGETHER), _each),
    torch.conv2d: _conv,
    torch.mean: _mean,
    torch.Tensor.mean: _mean,
    torch.Tensor.shape.__get__: _shape,
    torch.Tensor.size: _shape,
    **dict.fromkeys((torch.Tensor.dim, torch.Tensor.is_floating_point, *_FACTS), _fact),
}
