"""Original and converted network in one forward pass: the batch holds every picture twice.

The first half is the original's stream, the second half the converted one's. At a *station*, a
module of the network, each half goes its own way: the first through the module as it is, which
gives the targets, the second through what takes its place, which is fitted to them right then, on
the inputs that the converted network really gives it. Everything between stations treats pictures
one by one and cannot tell. So one pass fits all, nothing is stored, and any topology goes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..analysis import evaluating

Arguments = tuple[tuple, dict[str, Any]]
# Takes the module's own forward and the arguments of both streams; gives the outputs of both.
Visit = Callable[[Callable, Arguments, Arguments], tuple[Any, Any]]


def together(batches: list[Any]) -> Any | None:
    """Batches as one, along the first axis; None where they do not fit together."""
    try:
        return _join(batches)
    except (RuntimeError, KeyError, ValueError):  # sizes or names differ
        return None


def _join(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(batches) if first.ndim else first
    if isinstance(first, Mapping):
        return {key: _join([batch[key] for batch in batches]) for key in first}
    if isinstance(first, list):  # pictures of any size
        return [picture for batch in batches for picture in batch]
    if isinstance(first, tuple):
        return tuple(_join(list(part)) for part in zip(*batches, strict=True))
    return first


def pictures(batch: Any) -> int:
    """How many pictures a batch holds."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 1
    if isinstance(batch, list):
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return max((pictures(part) for part in parts if _is_batch(part)), default=1)


def first_pictures(batch: Any, number: int) -> Any:
    """The first pictures of a batch."""
    if isinstance(batch, Mapping):
        return {key: first_pictures(part, number) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(first_pictures(part, number) for part in batch)
    return batch[:number] if _is_batch(batch) else batch


def _is_batch(part: Any) -> bool:
    sized = isinstance(part, torch.Tensor) and part.ndim > 0
    return sized or isinstance(part, list | tuple | Mapping)


def tour(model: nn.Module, streams: Arguments, number: int, stations: Mapping[str, Visit]) -> Any:
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
    with _stationed(model, stations, number), evaluating(model):
        return model(*streams[0], **streams[1])


def arguments(batch: Any) -> Arguments:
    """A batch, as :func:`ghost_plugin.analysis.call` takes it, as arguments of a call."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


@contextmanager
def _stationed(model: nn.Module, stations: Mapping[str, Visit], number: int) -> Iterator[None]:
    modules = [(model.get_submodule(name), visit) for name, visit in stations.items()]
    own = [vars(module).get('forward') for module, _ in modules]
    try:
        for module, visit in modules:
            module.forward = _fork(module.forward, visit, number)
        yield
    finally:
        for (module, _), forward in zip(modules, own, strict=True):
            vars(module).pop('forward', None)
            if forward is not None:
                module.forward = forward


def _fork(forward: Callable, visit: Visit, number: int) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        old, new = (half((args, kwargs), part, number) for part in range(2))
        if old is None:  # not pictures of both streams, such as boxes of unequal number
            return forward(*args, **kwargs)
        return both(*visit(forward, old, new))

    return run


def half(value: Any, part: int, number: int) -> Any | None:
    """One stream of nested arguments; None where a tensor does not hold both."""
    leaves, spec = pytree.tree_flatten(value)
    batched = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim > 1]
    if not batched or any(not len(leaf) or len(leaf) % (2 * number) for leaf in batched):
        return None
    chosen = {id(leaf) for leaf in batched}
    halves = [leaf.chunk(2)[part] if id(leaf) in chosen else leaf for leaf in leaves]
    return pytree.tree_unflatten(halves, spec)


def both(old: Any, new: Any) -> Any:
    def join(a: Any, b: Any) -> Any:
        return torch.cat((a, b)) if isinstance(a, torch.Tensor) and a.ndim else a

    return pytree.tree_map(join, old, new)


def in_parts(run: Callable, given: Arguments, number: int, size: int) -> Any:
    """Call ``run`` on ``size`` of ``number`` pictures at a time; the outputs joined."""
    parts = [
        some(given, range(start, min(start + size, number)), number)
        for start in range(0, number, size)
    ]
    outputs = [run(*args, **kwargs) for args, kwargs in parts]
    return pytree.tree_map(
        lambda *a: torch.cat(a) if isinstance(a[0], torch.Tensor) and a[0].ndim else a[0], *outputs
    )


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
