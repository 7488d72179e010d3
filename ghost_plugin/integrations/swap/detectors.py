"""Levels that a detector wants, and its neck and heads fitted to the maps of a new backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...specs import FINAL_LEVEL
from .places import replaced, type_of
from .probing import Map, builds, features

_STRIDES = tuple(2 ** (level + 1) for level in range(FINAL_LEVEL))  # of the levels 0..4


def levels(part: Mapping, old: Sequence[Map], arguments: dict) -> dict[str, Any]:
    """``out_indices`` of ours with the strides of the old maps, and the output stride.

    Args:
        part: The detector.
        old: The maps of its backbone.
        arguments: Of the new backbone, as the user chose them.

    Raises:
        ValueError: Strides that are no powers of two, or 1.
    """
    strides = [stride for _, stride in old]
    if any(stride not in (*_STRIDES, 64, 128) for stride in strides):
        raise ValueError(
            f'the old backbone gives maps of strides {strides}, ours has {list(_STRIDES)}; '
            'choose levels with --out-indices'
        )
    dilated = any(rate > 1 for rate in _numbers(part['backbone'].get('dilations')))
    deepest = max(strides)
    if dilated and deepest in (8, 16) and 'output_stride' not in arguments:
        indices = {_STRIDES.index(s) for s in strides if s < deepest}
        return {'out_indices': (*sorted(indices), FINAL_LEVEL - 1), 'output_stride': deepest}
    return {'out_indices': tuple(sorted({_STRIDES.index(min(s, _STRIDES[-1])) for s in strides}))}


def _numbers(value: Any) -> Sequence[int]:
    return value if isinstance(value, list | tuple) else ()


def backbone_change(
    part: Mapping, new: dict[str, Any], old: Sequence[Map], scope: str, chosen: bool
) -> tuple[dict[str, Any], list[str]]:
    """The change to a detector, and remarks about what had to be added.

    Args:
        part: The detector.
        new: Config of the new backbone.
        old: The maps of its old backbone.
        scope: Where names are looked up.
        chosen: Whether the user chose the levels; then none are added.

    Raises:
        ValueError: The neck or head wants another number of levels than the user chose.
    """
    remarks = []
    given = features(new, scope)
    strides = [stride for _, stride in old]
    maps, backbone = given, new
    if not chosen and len(given) != len(old):
        backbone = _matched(new, given, strides)
        maps = features(backbone, scope)
        remarks.append(f'levels of strides {strides} are made of {[s for _, s in given]}')
    if len(maps) != len(old):
        raise ValueError(
            f'the neck or head {_reader(part)} wants {len(old)} levels of channels '
            f'{_channels(old)} and the backbone gives {len(maps)} ({_channels(maps)}); '
            f'give {len(old)} with --out-indices'
        )
    fitted = fit(part, _channels(old), _channels(maps))
    if fitted is None or not _takes(part.get('neck'), fitted.get('neck'), scope):
        fitted = None
        backbone = _matched(new, given, [s for _, s in maps], _channels(old))
        remarks.append(
            f'1x1 convs make the {_channels(old)} channels that {_reader(part)} must have'
        )
    return {'backbone': {'_delete_': True, **backbone}, **(fitted or {})}, remarks


def _takes(neck: Any, change: Any, scope: str) -> bool:
    """Whether a neck can be built with a change; a norm of groups takes only some channels."""
    if not isinstance(neck, Mapping):
        return True
    return builds({**neck, **(change or {})}, scope) or not builds(neck, scope)


def _matched(
    new: dict, given: Sequence[Map], strides: Sequence[int], channels: Sequence[int] | None = None
) -> dict[str, Any]:
    matched = {'type': 'ghost_plugin.MatchedLevels', 'backbone': new}
    matched.update(given=list(given), strides=list(strides))
    return {**matched, 'channels': list(channels)} if channels else matched


def _channels(maps: Sequence[Map]) -> list[int]:
    return [channels for channels, _ in maps]


def _reader(part: Mapping) -> str:
    """What reads the maps of the backbone."""
    heads = [key for key in part if key.endswith('head')]
    return type_of(part['neck']) if part.get('neck') else ' and '.join(heads) or str(part['type'])


def fit(part: Mapping, old: list[int], new: list[int]) -> dict[str, Any] | None:
    """The change of the parts that read the backbone's maps, None where none can be made."""
    neck = part.get('neck')
    if not neck:
        return _fit_heads(part, old, new)
    first = neck[0] if isinstance(neck, list | tuple) else neck
    wanted = _mapped(first.get('in_channels'), old, new)
    if wanted is None:
        return None
    change = {'in_channels': wanted}
    heads = {}
    if type_of(first) == 'SSDNeck':  # its first outputs are its inputs
        count = len(new)
        change['out_channels'] = [*new, *first['out_channels'][count:]]
        heads = {'bbox_head': {'in_channels': [*new, *part['bbox_head']['in_channels'][count:]]}}
    if first is neck:
        return {'neck': change, **heads}
    return {'neck': [{**first, **change}, *(dict(other) for other in neck[1:])], **heads}


def _fit_heads(part: Mapping, old: list[int], new: list[int]) -> dict[str, Any] | None:
    """Heads without a neck in front; a shared head has its channels in its code."""
    if 'shared_head' in (part.get('roi_head') or {}):
        return None
    single = len(old) == 1
    keys = ('in_channels', 'out_channels') if single else ('in_channels',)

    def swap(key: str, value: Any) -> Any:
        if key in keys and (single or not isinstance(value, int)):
            return _mapped(value, old, new)
        return None

    return replaced({key: part[key] for key in part if key.endswith('head')}, swap)


def _mapped(value: Any, old: list[int], new: list[int]) -> Any:
    """Channels as they were written, for the new maps; None if they are others."""
    if isinstance(value, int):
        return new[-1] if value == old[-1] else None
    if not isinstance(value, list | tuple):
        return None
    return {tuple(old): new, tuple(old[::-1]): new[::-1]}.get(tuple(value))
