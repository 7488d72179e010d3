"""Necks and heads that read the levels of a backbone, fitted to the channels of another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....utils import optional
from .config_tree import merged, replaced, type_of
from .probing import Map, on_meta_or_cpu

optional.require('mmengine', 'mmcv')

from mmengine.registry import MODELS, init_default_scope

_IMAGE_SIZE = 512  # pixels; SSD's neck needs as many
_NO_CONSUMERS = ('backbone', 'neck', 'data_preprocessor', 'init_cfg')


@dataclass(frozen=True)
class _NeckOutputs:
    """Channels of what a neck returns, and which of its inputs they depend on."""

    channels: list[int]
    levels_read: list[bool]


@dataclass(frozen=True)
class _Source:
    """Channels of a sequence of feature maps before and after the swap."""

    old: list[int]
    new: list[int]


def fit(
    part: Mapping, old: Sequence[Map], new: Sequence[Map], scope: str, *, last_level: bool
) -> dict[str, Any] | None:
    """The change of all parts that read the backbone's levels, None where none can be made.

    Args:
        part: Config of the model.
        old, new: Feature maps of the old and the new backbone, as many.
        scope: Where names are looked up.
        last_level: Whether a head that names no level reads the last one.

    Raises:
        ValueError: A head reads a level whose channels are others than it names.
    """
    backbone = _Source([width for width, _ in old], [width for width, _ in new])
    neck = part.get('neck')
    if not neck:
        return _fit_heads(part, [backbone], backbone, last_level)
    change = _neck_change(neck, backbone)
    if change is None:
        return None
    before = _neck_outputs(neck, old, scope)
    after = _neck_outputs(_applied(neck, change), new, scope)
    if before and not after:  # a norm of groups takes only some channels
        return None
    changed = {'neck': change} if change else {}
    if not before:
        return changed  # a neck that does not run here hides what its heads read
    sources = [_Source(before.channels, after.channels), backbone]
    return {**changed, **(_fit_heads(part, sources, None, last_level) or {})}


def levels_read(neck: Any, maps: Sequence[Map], scope: str) -> list[bool]:
    """For each level of a backbone whether a neck's outputs depend on it; all without a neck."""
    outputs = _neck_outputs(neck, maps, scope) if neck else None
    return outputs.levels_read if outputs else [True] * len(maps)


def _neck_change(neck: Any, backbone: _Source) -> Any:
    """The change of a neck, empty where it names no channels, None where it names others."""
    first = neck[0] if isinstance(neck, list | tuple) else neck
    if 'in_channels' not in first:
        return {}
    wanted = _mapped(first['in_channels'], backbone)
    if wanted is None:
        return None
    if type_of(first) == 'SSDNeck':  # its first outputs are its inputs
        others = first['out_channels'][len(backbone.new) :]
        change = {'in_channels': wanted, 'out_channels': [*backbone.new, *others]}
    else:  # JPU insists on a tuple
        change = {'in_channels': type(first['in_channels'])(wanted)}
    if first is neck:
        return change
    return [{**first, **change}, *(dict(other) for other in neck[1:])]


def _applied(neck: Any, change: Any) -> Any:
    return change if isinstance(change, list) else merged(neck, change)


def _neck_outputs(neck: Any, maps: Sequence[Map], scope: str) -> _NeckOutputs | None:
    """Channels of a neck's outputs for feature maps, None where it does not run."""
    init_default_scope(scope)
    necks = neck if isinstance(neck, list | tuple) else [neck]

    def run(device: str) -> _NeckOutputs:
        with torch.device(device):
            inputs = tuple(
                torch.zeros(2, width, size, size, requires_grad=True)
                for width, stride in maps
                for size in [-(-_IMAGE_SIZE // stride)]
            )
            outputs = inputs
            for cfg in necks:
                module = MODELS.build(merged(cfg, None))
                module.eval()
                outputs = module(outputs)
        outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
        total = sum(output.sum() for output in outputs)
        gradients = torch.autograd.grad(total, inputs, allow_unused=True)
        return _NeckOutputs(
            [output.shape[1] for output in outputs], [one is not None for one in gradients]
        )

    try:
        return on_meta_or_cpu(run)
    except Exception:  # foreign modules raise whatever they like
        return None


def _consumers(part: Mapping) -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        first = value[0] if isinstance(value, list | tuple) and value else value
        if key not in _NO_CONSUMERS and not key.endswith('_cfg') and isinstance(first, Mapping):
            yield key, value


def _fit_heads(
    part: Mapping, sources: Sequence[_Source], direct: _Source | None, last_level: bool
) -> dict[str, Any] | None:
    """The change of the heads, None where they read the backbone and nothing fits.

    Args:
        part: Config of the model.
        sources: What heads may read, the most likely first.
        direct: The backbone's levels where no neck stands between.
        last_level: Whether a head that names no level reads the last one.
    """
    if direct and 'shared_head' in (part.get('roi_head') or {}):
        return None  # it has its channels in its code
    found = {}
    for key, value in _consumers(part):
        parts = value if isinstance(value, list | tuple) else [value]
        changes = [_fit_head(key, one, sources, direct, last_level) for one in parts]
        if any(changes):
            whole = [merged(*pair) for pair in zip(parts, changes, strict=True)]
            found[key] = changes[0] if parts[0] is value else whole
    return found or None


def _fit_head(
    key: str,
    head: Mapping,
    sources: Sequence[_Source],
    direct: _Source | None,
    last_level: bool,
) -> dict[str, Any] | None:
    own = {}
    value = head.get('in_channels')
    if isinstance(value, int) and 'in_index' not in head and not (direct and not last_level):
        new = _selected(value, -1, sources) if last_level else _renamed(value, sources)
        if new is None and last_level:
            raise ValueError(_misfit(key, head, -1, sources))
        own = {'in_channels': new} if new not in (None, value) else {}

    def swap(name: str, value: Any, owner: Mapping) -> Any:
        if 'in_index' in owner and name in ('in_channels', 'c1_in_channels') and value:
            index = owner['in_index'] if name == 'in_channels' else 0
            new = _selected(value, index, sources)
            if new is None:
                raise ValueError(_misfit(key, owner, index, sources, name))
            return new
        if name == 'in_channels' and not isinstance(value, int):
            return next((new for one in sources if (new := _mapped(value, one))), None)
        if direct and len(direct.old) == 1 and name in ('in_channels', 'out_channels'):
            return _mapped(value, direct)
        return None

    return {**(replaced(head, swap) or {}), **own} or None


def _selected(value: Any, index: Any, sources: Sequence[_Source]) -> Any:
    """New channels of the levels at an index, None where no source has the old ones there."""
    for source in sources:
        try:
            if isinstance(index, int):
                if source.old[index] == value:
                    return source.new[index]
            elif [source.old[one] for one in index] == list(value):
                return [source.new[one] for one in index]
        except (IndexError, TypeError):
            continue
    return None


def _renamed(value: int, sources: Sequence[_Source]) -> int | None:
    """New channels for old ones, None where no source has them or they become several."""
    for source in sources:
        found = {new for old, new in zip(source.old, source.new, strict=True) if old == value}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _misfit(
    key: str, head: Mapping, index: Any, sources: Sequence[_Source], name: str = 'in_channels'
) -> str:
    return (
        f'{key} ({type_of(head)}) has {name}={head[name]} for level {index}, where the levels have '
        f'{" or ".join(str(source.old) for source in sources)} channels; what it reads is not '
        'known, change it by hand'
    )


def _mapped(value: Any, source: _Source) -> Any:
    """Channels as they were written, for the new maps; None if they are others."""
    if isinstance(value, int):
        return source.new[-1] if value == source.old[-1] else None
    if not isinstance(value, list | tuple):
        return None
    old, new = source.old, source.new
    return {tuple(old): new, tuple(old[::-1]): new[::-1]}.get(tuple(value))
