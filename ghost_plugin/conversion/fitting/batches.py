"""Batches of images: their size, parts, regrouping, and nested tensors of many images.

A batch is what a model is called with: a tensor, a tuple of arguments, a mapping of keyword
arguments, or a list of images of any size inside of these.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...utils.modules import call_model, eval_mode, tensors_in, to_channels_last

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def as_batches(calibration: Iterable[Any], model: nn.Module) -> list[Any]:
    """Check calibration batches; a batch that is a list becomes a tuple of arguments.

    Args:
        calibration: Batches.
        model: Called with the first image.

    Raises:
        ValueError: There is no batch, or the model cannot be called with it.
    """
    if isinstance(calibration, torch.Tensor | Mapping):
        raise ValueError(
            f'calibration takes several batches, got one {type(calibration).__name__}; give it in '
            'a list'
        )
    batches = [tuple(batch) if isinstance(batch, list) else batch for batch in calibration]
    if not batches:
        raise ValueError('calibration holds no batch; leave it out to go without data')
    try:
        with eval_mode(model):
            call_model(model, slice_batch(batches[0], slice(0, 1)))
    except TypeError as error:
        raise ValueError(
            'a calibration batch is what the model is called with, a tensor, a tuple of arguments '
            f'or a mapping of keyword arguments, without labels; a {type(batches[0]).__name__} '
            f'was given: {error}'
        ) from error
    return batches


def batch_size(batch: Any) -> int:
    """Number of images that a batch holds."""
    sized = list(_sized_parts(batch))
    # Grids, tokens and the like have a first axis of their own.
    images = [part for part in sized if isinstance(part, torch.Tensor) and part.ndim > 3]
    return max(map(len, images or sized), default=1)


def slice_batch(batch: Any, chosen: slice) -> Any:
    """Images of a batch by position.

    Args:
        batch: Parts that do not hold one entry per image stay whole.
        chosen: Positions of images.
    """
    return _slice_part(batch, chosen, batch_size(batch))


def _slice_part(part: Any, chosen: slice, number: int) -> Any:
    if isinstance(part, Mapping):
        return {key: _slice_part(value, chosen, number) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_slice_part(value, chosen, number) for value in part)
    return part[chosen] if _has_length(part, number) else part


def rebatch(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Regroup the images of all batches; only those that span two batches are copied.

    Args:
        batches: Batches of any sizes.
        size: Images per new batch; the last one may hold fewer.
    """
    parts: list[Any] = []
    for batch in batches:
        start, number = 0, batch_size(batch)
        while start < number:
            missing = size - sum(map(batch_size, parts))
            parts.append(slice_batch(batch, slice(start, start + missing)))
            start += missing
            if start <= number:
                yield _concat(parts)
                parts = []
    if parts:
        yield _concat(parts)


def concat_batches(batches: Sequence[Any]) -> Any | None:
    """Concatenate along the first axis; None where image sizes or argument names differ."""
    try:
        return _concat(batches)
    except (RuntimeError, KeyError, ValueError):
        return None


def _concat(batches: Sequence[Any]) -> Any:
    if len(batches) == 1:
        return batches[0]
    return _concat_parts(batches, [batch_size(batch) for batch in batches])


def _concat_parts(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _concat_parts([part[key] for part in parts], sizes) for key in first}
    if isinstance(first, tuple):
        return tuple(_concat_parts(values, sizes) for values in zip(*parts, strict=True))
    if not all(map(_has_length, parts, sizes)):
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts))
    return [image for part in parts for image in part]  # of any size


def can_concat(batches: Sequence[Any]) -> bool:
    """Say if images of all batches, and each of them twice, go through a model together."""
    # Models pad images in lists to the largest of a batch, so these need one size.
    lists = [part for batch in batches for part in _sized_parts(batch) if isinstance(part, list)]
    if len({leaf.shape for leaf in tensors_in(lists) if leaf.ndim > 2}) > 1:
        return False
    first, *others = (slice_batch(batch, slice(0, 1)) for batch in batches)
    return concat_batches([first, first, *others]) is not None


def _sized_parts(batch: Any) -> Iterator[Any]:
    """Tensors and lists of a batch that have a length."""
    if isinstance(batch, Mapping | tuple):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _sized_parts(part)
    elif isinstance(batch, list) or (isinstance(batch, torch.Tensor) and batch.ndim):
        yield batch


def _has_length(part: Any, number: int) -> bool:
    return any(len(sized) == number for sized in _sized_parts(part))


def take_samples(nested: Any, chosen: range | torch.Tensor, number: int) -> Any:
    """Samples out of nested tensors of activations.

    Args:
        nested: Tensors of two or more axes hold one or several rows per sample.
        chosen: Positions of samples, a range or (n,) indices.
        number: Samples that ``nested`` holds.
    """
    index = slice(chosen.start, chosen.stop) if isinstance(chosen, range) else chosen

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.ndim < 2 or len(leaf) % number:
            return leaf
        if len(leaf) <= number:
            return leaf[index]
        return leaf.view(number, -1, *leaf.shape[1:])[index].flatten(0, 1)

    return pytree.tree_map(take, nested)


def split_pair(nested: Any, number: int) -> tuple[Any, Any] | None:
    """Split what holds the original's and the converted model's samples.

    Args:
        nested: Tensors of two or more axes hold both, the original's first.
        number: Samples of each.

    Returns:
        Both parts; None where a tensor does not hold both, such as crops or boxes of images, whose
        order is unknown.
    """
    leaves, spec = pytree.tree_flatten(nested)
    batched = [isinstance(leaf, torch.Tensor) and leaf.ndim > 1 for leaf in leaves]
    split = [leaf for leaf, is_batch in zip(leaves, batched, strict=True) if is_batch]
    if not split or any(len(leaf) != 2 * number for leaf in split):
        return None
    columns = [
        leaf.chunk(2) if b else (leaf, leaf) for leaf, b in zip(leaves, batched, strict=True)
    ]
    first, second = (pytree.tree_unflatten(list(part), spec) for part in zip(*columns, strict=True))
    return first, second


def split_nested(nested: Any, sizes: Sequence[int]) -> list[Any]:
    """Split outputs of many samples.

    Args:
        nested: Tensors of two or more axes hold one or several rows per sample.
        sizes: Samples of each part.
    """
    leaves, spec = pytree.tree_flatten(nested)
    total = sum(sizes)

    def split(leaf: Any) -> list[Any]:
        if not isinstance(leaf, torch.Tensor) or leaf.ndim < 2:
            return [leaf] * len(sizes)
        return list(torch.split(leaf, [n * (len(leaf) // total) for n in sizes]))

    columns = [split(leaf) for leaf in leaves]
    return [
        pytree.tree_unflatten([column[i] for column in columns], spec) for i in range(len(sizes))
    ]


def concat_nested(*parts: Any, min_ndim: int = 1) -> Any:
    """Concatenate nested outputs or arguments of several groups of samples.

    Args:
        parts: Of one structure.
        min_ndim: Tensors of fewer axes are taken from the first part.

    Raises:
        ValueError: The structures differ.
    """

    def concat(first: Any, *others: Any) -> Any:
        batched = isinstance(first, torch.Tensor) and first.ndim >= min_ndim
        return torch.cat((first, *others)) if batched and others else first

    leaves, specs = zip(*map(pytree.tree_flatten, parts), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise ValueError(f'only parts of one structure can be concatenated, got {specs}')
    return pytree.tree_unflatten([concat(*each) for each in zip(*leaves, strict=True)], specs[0])


def channels_last(nested: Any) -> Any:
    """Feature maps in the memory format that convs on CPUs are fastest with.

    Convs follow the format of their inputs. A training step of EfficientNet-Lite0 takes 0.6 of the
    time.

    Args:
        nested: Nested tensors; those of (N, C, H, W) change their format.
    """
    return pytree.tree_map_only(torch.Tensor, to_channels_last, nested)
