"""Fit the necks and heads that read the levels of a backbone to the channels of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....utils import optional
from .config_tree import first_of, listed, merge, tree_change, type_name
from .probing import Level, on_meta_or_cpu, quiet_logging

optional.require('mmengine', 'mmcv')

from mmengine.registry import MODELS, init_default_scope

_IMAGE_SIZE = 512  # pixels; SSD's neck needs as many
_NO_CONSUMERS = ('backbone', 'neck', 'data_preprocessor', 'init_cfg')


@dataclass(frozen=True)
class _NeckOutputs:
    """Channels of the outputs of a neck, and for each input if an output depends on it."""

    channels: list[int]
    levels_read: list[bool]


@dataclass(frozen=True)
class _Source:
    """Channels of a sequence of levels before and after the swap."""

    old: list[int]
    new: list[int]


def fit(
    part: Mapping, old: Sequence[Level], new: Sequence[Level], scope: str, *, last_level: bool
) -> dict[str, Any] | None:
    """Compute the change of all parts that read the backbone's levels.

    Args:
        part: Config of the model.
        old, new: Levels of the old and the new backbone, the same number.
        scope: Package in which names are looked up.
        last_level: A head that names no level reads the last one.

    Returns:
        The change, None where no change of channels fits.

    Raises:
        ValueError: A head reads a level that has other channels than the head names.
    """
    backbone = _Source([width for width, _ in old], [width for width, _ in new])
    neck = part.get('neck')
    if not neck:
        return _fit_heads(part, [backbone], backbone, last_level)
    change = _neck_change(neck, backbone)
    if change is None:
        return None
    before = _neck_outputs(neck, old, scope)
    changed_neck = change if isinstance(change, list) else merge(neck, change)
    after = _neck_outputs(changed_neck, new, scope)
    if before and not after:  # a group norm needs a number of channels that its groups divide
        return None
    changed = {'neck': change} if change else {}
    if not before:
        return changed  # the neck does not run here, so its outputs are unknown
    sources = [_Source(before.channels, after.channels), backbone]
    return {**changed, **(_fit_heads(part, sources, None, last_level) or {})}


def levels_read(part: Mapping, levels: Sequence[Level], scope: str) -> list[bool]:
    """Find the levels of a backbone that its neck reads or, without one, its heads.

    Args:
        part: Config of the model; all levels are read where it does not say which.
        levels: Levels of the backbone.
        scope: Package in which names are looked up.
    """
    if part.get('neck'):
        outputs = _neck_outputs(part['neck'], levels, scope)
        return outputs.levels_read if outputs else [True] * len(levels)
    found = [value for key, value in part.items() if key.endswith('head') and value]
    heads = [head for one in found for head in listed(one)]
    if not heads or not all('in_index' in head for head in heads):
        return [True] * len(levels)
    read = [False] * len(levels)
    for head in heads:
        low = [0] if head.get('c1_in_channels') else []
        for one in [*listed(head['in_index']), *low]:
            read[one] = True
    return read


def heads_build(part: Mapping, change: Mapping[str, Any], scope: str) -> bool:
    """Say if all heads can be built that could be built before a change, with the same outputs.

    Args:
        part: Config of the model.
        change: What :func:`fit` returned; a head may want channels that its groups divide, or
            return the levels as they are.
        scope: Package in which names are looked up.
    """
    init_default_scope(scope)
    heads = [key for key in change if key != 'neck' and isinstance(part[key], Mapping)]
    return all(
        not _is_identity(part[key])
        and (_builds(merge(part[key], change[key])) or not _builds(part[key]))
        for key in heads
    )


def _is_identity(head: Mapping) -> bool:
    """True for a head without layers of its own, such as that of CPM."""
    layers = ('final_layer', 'deconv_out_channels', 'conv_out_channels')
    return 'final_layer' in head and not any(head.get(name) for name in layers)


def _builds(cfg: Mapping) -> bool:
    try:
        with torch.device('meta'), quiet_logging():
            MODELS.build(merge(cfg, None))
        return True
    except Exception:  # modules of other packages raise anything
        return False


def _neck_change(neck: Any, backbone: _Source) -> Any:
    """The change of a neck, empty where it names no channels, None where it names others."""
    first = first_of(neck)
    if 'in_channels' not in first:
        return {}
    wanted = _mapped(first['in_channels'], backbone)
    if wanted is None:
        return None
    if type_name(first) == 'SSDNeck':  # its first outputs are its inputs
        others = first['out_channels'][len(backbone.new) :]
        change = {'in_channels': wanted, 'out_channels': [*backbone.new, *others]}
    else:  # JPU insists on a tuple
        change = {'in_channels': type(first['in_channels'])(wanted)}
    if first is neck:
        return change
    return [{**first, **change}, *(dict(other) for other in neck[1:])]


def _neck_outputs(neck: Any, levels: Sequence[Level], scope: str) -> _NeckOutputs | None:
    """Run a neck on the levels of a backbone; None where it does not run."""
    init_default_scope(scope)
    necks = listed(neck)

    def run(device: str) -> _NeckOutputs:
        with torch.device(device):
            inputs = tuple(
                torch.zeros(2, width, size, size, requires_grad=True)
                for width, stride in levels
                for size in [-(-_IMAGE_SIZE // stride)]
            )
            outputs = inputs
            for cfg in necks:
                module = MODELS.build(merge(cfg, None))
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
    except Exception:  # modules of other packages raise anything
        return None


def _fit_heads(
    part: Mapping, sources: Sequence[_Source], direct: _Source | None, last_level: bool
) -> dict[str, Any] | None:
    """The change of the heads, None where they read the backbone and nothing fits.

    Args:
        part: Config of the model.
        sources: Levels that heads may read, the most likely first.
        direct: The backbone's levels where there is no neck.
        last_level: A head that names no level reads the last one.
    """
    if direct and 'shared_head' in (part.get('roi_head') or {}):
        return None  # its code fixes its channels
    found = {}
    for key, value in part.items():
        first = first_of(value)
        if key in _NO_CONSUMERS or key.endswith('_cfg') or not isinstance(first, Mapping):
            continue
        parts = listed(value)
        changes = [_fit_head(key, one, sources, direct, last_level) for one in parts]
        if any(changes):
            whole = [merge(*pair) for pair in zip(parts, changes, strict=True)]
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

    def _replace(name: str, value: Any, owner: Mapping) -> Any:
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

    return {**(tree_change(head, _replace) or {}), **own} or None


def _selected(value: Any, index: Any, sources: Sequence[_Source]) -> Any:
    """New channels of the level(s) at an index, None where no source has the old ones there."""
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
        f'{key} ({type_name(head)}) has {name}={head[name]} for level {index}, where the levels '
        f'have {" or ".join(str(source.old) for source in sources)} channels; the level that it '
        'reads is unknown, change it by hand'
    )


def _mapped(value: Any, source: _Source) -> Any:
    """New channels in the form of the old value, None if it names other channels."""
    if isinstance(value, int):
        return source.new[-1] if value == source.old[-1] else None
    if not isinstance(value, list | tuple):
        return None
    old, new = source.old, source.new
    return {tuple(old): new, tuple(old[::-1]): new[::-1]}.get(tuple(value))
