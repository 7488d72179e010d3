"""Original and converted network in one forward pass: the batch holds every picture twice.

The first half is the original's stream, the second half the converted one's. At a *station*, a
module of the network, each half goes its own way: the first through the module as it is, which
gives the targets, the second through what takes its place, which is fitted to them right then, on
the inputs that the converted network really gives it. Everything between stations treats pictures
one by one and cannot tell. So one pass fits all, nothing is stored, and any topology goes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...utils.modules import clone_tensors, eval_mode, removing_hooks, tensors_in
from ...utils.torch_compat import autocasts, full_precision

Arguments = tuple[tuple, dict[str, Any]]
PART = 16  # pictures that a module runs on at a time when nothing is learnt


@dataclass(frozen=True)
class ActivationBatch:
    """What a module is called with for many images, in parts, which are joined only on demand.

    The module gets copies, because it may write into what it is called with.

    Attributes:
        parts: Arguments of some images each.
        numbers: Images of each part.
    """

    parts: Sequence[Arguments]
    numbers: Sequence[int]
    _written: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list, repr=False)

    @property
    def number(self) -> int:
        """Of pictures."""
        return sum(self.numbers)

    def first(self, number: int) -> Arguments:
        """Arguments of the first pictures."""
        chosen = []
        for part, own in zip(self.parts, self.numbers, strict=True):
            if number > 0:
                chosen.append(some(part, range(min(number, own)), own))
                number -= own
        return _joined(chosen, axes=2)

    def through(self, run: Callable) -> Any:
        """The outputs for all images, made for ``PART`` at a time."""
        self._written.clear()
        return concat_nested(*(self._run(run, piece) for piece in self._pieces()))

    def _run(self, run: Callable, piece: Arguments) -> Any:
        args, kwargs = own = clone_tensors(piece)
        pairs = list(zip(tensors_in(piece), tensors_in(own), strict=True))
        before = [copy._version for _, copy in pairs]
        output = run(*args, **kwargs)
        self._written.extend(
            pair for pair, version in zip(pairs, before, strict=True) if pair[1]._version > version
        )
        return output

    def write(self) -> None:
        """Write into the caller's own tensors what the last run wrote into their copies."""
        for place, copy in self._written:
            place.copy_(copy)

    def _pieces(self) -> Iterator[Arguments]:
        for part, own in zip(self.parts, self.numbers, strict=True):
            for start in range(0, own, PART):
                yield some(part, range(start, min(start + PART, own)), own)


# Takes the module's own forward and both streams, gives the outputs of both.
ModuleVisitor = Callable[[Callable, ActivationBatch, ActivationBatch], tuple[Any, Any]]


def concat_batches(batches: list[Any]) -> Any | None:
    """Batches as one, along the first axis; None where they do not fit together."""
    try:
        return _join(batches)
    except (RuntimeError, KeyError, ValueError):  # sizes or names differ
        return None


def one_size(batches: list[Any]) -> bool:
    """Whether pictures in lists are all alike; networks pad others to the largest of a batch."""
    lists = [part for batch in batches for part in _sized(batch) if isinstance(part, list)]
    return len({leaf.shape for leaf in tensors_in(lists) if leaf.ndim > 2}) < 2


def _join(batches: list[Any]) -> Any:
    return batches[0] if len(batches) == 1 else _joined_parts(batches, [*map(batch_size, batches)])


def _joined_parts(parts: list[Any], numbers: list[int]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _joined_parts([part[key] for part in parts], numbers) for key in first}
    if isinstance(first, tuple):
        return tuple(_joined_parts(list(part), numbers) for part in zip(*parts, strict=True))
    if not all(map(_one_each, parts, numbers)):
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(parts)
    return [picture for part in parts for picture in part]  # of any size


def batch_size(batch: Any) -> int:
    """How many pictures a batch holds."""
    sized = list(_sized(batch))
    # Grids, tokens and the like have a first axis of their own.
    maps = [part for part in sized if isinstance(part, torch.Tensor) and part.ndim > 3]
    return max(map(len, maps or sized), default=1)


def slice_batch(batch: Any, chosen: slice) -> Any:
    """Some pictures of a batch; what it does not hold one of for each picture stays whole."""
    return _cut(batch, chosen, batch_size(batch))


def _cut(part: Any, chosen: slice, number: int) -> Any:
    if isinstance(part, Mapping):
        return {key: _cut(value, chosen, number) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_cut(value, chosen, number) for value in part)
    return part[chosen] if _one_each(part, number) else part


def rebatch(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """The pictures of all batches, ``size`` at a time; only what is asked for is joined."""
    parts: list[Any] = []
    for batch in batches:
        start, number = 0, batch_size(batch)
        while start < number:
            missing = size - sum(map(batch_size, parts))
            parts.append(slice_batch(batch, slice(start, start + missing)))
            start += missing
            if start <= number:
                yield _join(parts)
                parts = []
    if parts:
        yield _join(parts)


def _sized(batch: Any) -> Iterator[Any]:
    """The tensors and lists of a batch that have a length."""
    if isinstance(batch, Mapping | tuple):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _sized(part)
    elif isinstance(batch, list) or (isinstance(batch, torch.Tensor) and batch.ndim):
        yield batch


def _one_each(part: Any, number: int) -> bool:
    return any(len(sized) == number for sized in _sized(part))


def tour(
    model: nn.Module, streams: Arguments, number: int, stations: Mapping[str, ModuleVisitor]
) -> Any:
    """Run ``model`` on both streams and visit every station when it comes.

    Args:
        model: The original network, or a block of it; it is left as it was.
        streams: Arguments that hold both streams.
        number: Pictures of each stream.
        stations: What happens at each module, by name. A module that is called again is visited
            again.

    Returns:
        The output of the model, both streams.
    """

    def stop(name: str, forward: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            both_streams = split_pair((args, kwargs), number)
            if both_streams is None:
                return forward(*args, **kwargs)
            return visited(stations[name], forward, as_single_batch(both_streams, number))

        return run

    args, kwargs = clone_tensors(streams)
    with forward_overrides(model, stations, stop), eval_mode(model):
        return model(*args, **kwargs)


def visited(visit: ModuleVisitor, forward: Callable, streams: Sequence[ActivationBatch]) -> Any:
    """Both streams' outputs of a station, as one."""
    outputs = visit(forward, *streams)
    for stream in streams:
        stream.write()
    return concat_nested(*outputs)


@contextmanager
def forward_overrides(
    model: nn.Module, names: Iterable[str], stop: Callable[[str, Callable], Callable]
) -> Iterator[None]:
    """Other forwards for some modules, while the block runs: made by ``stop`` of name and own."""
    modules = {name: model.get_submodule(name) for name in names}
    own = {name: vars(module).get('forward') for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.forward = _widened(module, stop(name, module.forward))
        yield
    finally:
        for name, module in modules.items():
            vars(module).pop('forward', None)
            if own[name] is not None:
                module.forward = own[name]


def _widened(module: nn.Module, forward: Callable) -> Callable:
    """A forward without the autocast of the network that calls it, in the module's own dtype."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def widen(leaf: Any) -> Any:
        floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    def run(*args: Any, **kwargs: Any) -> Any:
        if not autocasts():
            return forward(*args, **kwargs)
        args, kwargs = pytree.tree_map(widen, (args, kwargs))
        with full_precision():
            return forward(*args, **kwargs)

    return run


def as_single_batch(streams: tuple[Arguments, Arguments], number: int) -> list[ActivationBatch]:
    """Both streams, each of one part."""
    return [ActivationBatch([stream], [number]) for stream in streams]


def split_pair(value: Any, number: int) -> tuple[Any, Any] | None:
    """Both streams of nested arguments; None where a tensor does not hold both."""
    leaves, spec = pytree.tree_flatten(value)
    batched = [isinstance(leaf, torch.Tensor) and leaf.ndim > 1 for leaf in leaves]
    split = [leaf for leaf, is_batch in zip(leaves, batched, strict=True) if is_batch]
    # Crops, windows or boxes of pictures may stand in any order, so they are nobody's half.
    if not split or any(len(leaf) != 2 * number for leaf in split):
        return None

    def half(part: int) -> Any:
        return pytree.tree_unflatten(
            [leaf.chunk(2)[part] if b else leaf for leaf, b in zip(leaves, batched, strict=True)],
            spec,
        )

    return half(0), half(1)


def concat_nested(*parts: Any) -> Any:
    """Outputs or arguments of several streams, or of several parts of one, as one."""
    return _joined(parts, axes=1)


def _joined(parts: Sequence[Any], axes: int) -> Any:
    """Tensors of so many axes at the least are joined."""

    def join(first: Any, *others: Any) -> Any:
        batched = isinstance(first, torch.Tensor) and first.ndim >= axes
        return torch.cat((first, *others)) if batched and others else first

    leaves, specs = zip(*map(pytree.tree_flatten, parts), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise ValueError(f'parts that are built alike can be joined, got {specs}')
    return pytree.tree_unflatten([join(*each) for each in zip(*leaves, strict=True)], specs[0])


@contextmanager
def observe_activations(model: nn.Module, note: Callable[[int], Any]) -> Iterator[None]:
    """Tell ``note`` the bytes of every map that an innermost module gives."""

    def seen(module: nn.Module, inputs: tuple, maps: Any) -> None:
        if isinstance(maps, torch.Tensor):
            note(maps.numel() * maps.element_size())

    leaves = [m for m in model.modules() if not list(m.children())]
    leaves = [leaf for leaf in leaves if not isinstance(leaf, torch.jit.ScriptModule)]  # no hooks
    with removing_hooks(*(leaf.register_forward_hook(seen) for leaf in leaves)):
        yield


def some(given: Any, chosen: Any, number: int) -> Any:
    """Some of ``number`` pictures out of nested tensors; each may stand for several rows."""

    def pick(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.ndim < 2 or len(leaf) % number:
            return leaf
        rows = leaf.view(number, -1, *leaf.shape[1:]) if len(leaf) > number else leaf
        index = slice(chosen.start, chosen.stop) if isinstance(chosen, range) else chosen
        picked = rows[index]
        return picked.flatten(0, 1) if len(leaf) > number else picked

    return pytree.tree_map(pick, given)
