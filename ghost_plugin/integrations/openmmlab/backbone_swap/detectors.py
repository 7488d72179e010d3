"""Levels that a detector, segmentor or pose estimator reads, taken from a new backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from .... import specs
from ....specs import FINAL_LEVEL
from . import consumers
from .config_tree import is_ours, type_of
from .probing import Map, features

_STRIDES = tuple(2 ** (level + 1) for level in range(FINAL_LEVEL))  # of the levels 0..4
_DEEPEST = FINAL_LEVEL - 1


def levels(part: Mapping, old: Sequence[Map], arguments: Mapping) -> dict[int, int]:
    """The level of ours for each stride of the old feature maps; the last of that stride.

    Args:
        part: Config of the model.
        old: Feature maps of its backbone.
        arguments: Of the new backbone, with its ``output_stride`` if it has one.

    Raises:
        ValueError: Strides that are no powers of two, or 1.
    """
    strides = sorted({stride for _, stride in old})
    if any(stride not in (*_STRIDES, 64, 128) for stride in strides):
        raise ValueError(
            f'the old backbone gives maps of strides {strides}, ours has {list(_STRIDES)}; '
            'choose levels with --out-indices'
        )
    found = {stride: _STRIDES.index(min(stride, _STRIDES[-1])) for stride in strides}
    if _is_dilated(part) or strides[-1] >= arguments.get('output_stride', _STRIDES[-1]):
        found[strides[-1]] = _DEEPEST  # dilated stages share a stride
    return found


def _is_dilated(part: Mapping) -> bool:
    rates = part['backbone'].get('dilations')
    return isinstance(rates, list | tuple) and any(rate > 1 for rate in rates)


def change(
    part: Mapping, new: dict[str, Any], scope: str, *, projections: bool, last_level: bool
) -> tuple[dict[str, Any], list[str]]:
    """The change that puts a backbone into a model, and remarks about what had to be added.

    Args:
        part: Config of the model.
        new: Config of the new backbone; of ours, levels are chosen where it has no
            ``out_indices``.
        scope: Where names are looked up.
        projections: Whether 1x1 convs may make the old channels where a reader cannot change.
        last_level: Whether a head that names no level reads the last one.

    Raises:
        ValueError: A reader wants another number of levels than the user chose, or channels that
            cannot be had.
    """
    old = features(part['backbone'], scope)
    strides = [stride for _, stride in old]
    remarks = []
    if is_ours(new):
        specs.find(new['type'])
    backbone = new
    if is_ours(new) and 'out_indices' not in new:
        if _is_dilated(part) and max(strides) in (8, 16):
            new = {'output_stride': max(strides), **new}
        chosen = levels(part, old, new)
        new = {**new, 'out_indices': tuple(sorted(set(chosen.values())))}
        if max(chosen.values()) < _DEEPEST:
            remarks.append(
                f'the old feature maps end at stride {max(strides)}, so the new backbone ends at '
                f'level {max(chosen.values())} of {_DEEPEST}'
            )
        backbone, given = new, features(new, scope)
        if len(given) != len(old):
            stride_of = {level: s for level, (_, s) in zip(new['out_indices'], given, strict=True)}
            ready = (*stride_of.values(), *(s for s in strides if s > max(stride_of.values())))
            strides = [s if s in ready else stride_of[chosen[s]] for s in strides]
            backbone = _matched(new, given, strides)
            remarks.append(f'levels of strides {strides} are made of {[s for _, s in given]}')
    given, maps = features(new, scope), features(backbone, scope)
    if len(maps) != len(old):
        raise ValueError(
            f'the neck or head {_reader(part)} wants {len(old)} levels of channels '
            f'{_channels(old)} and the backbone gives {len(maps)} ({_channels(maps)}); '
            f'give {len(old)} with --out-indices'
        )
    if [s for _, s in maps] != [s for _, s in old]:
        remarks.append(
            f'the feature maps have strides {[s for _, s in maps]} and had {[s for _, s in old]}; '
            'anchors, strides and sizes that heads name stay as they were'
        )
    fitted = consumers.fit(part, old, maps, scope, last_level=last_level)
    if fitted is None:
        if not projections:
            raise ValueError(
                f'{_reader(part)} reads levels of {_channels(old)} channels and names no channels '
                f'that could become the {_channels(maps)} of the new backbone; change it by hand'
            )
        read = consumers.levels_read(part.get('neck'), old, scope)
        wanted = [
            before if is_read else now
            for (before, _), (now, _), is_read in zip(old, maps, read, strict=True)
        ]
        backbone = _matched(new, given, [s for _, s in maps], wanted)
        remarks.append(
            f'1x1 convs make the {_channels(old)} channels that {_reader(part)} must have'
        )
    return {'backbone': {'_delete_': True, **backbone}, **(fitted or {})}, remarks


def _matched(
    new: dict, given: Sequence[Map], strides: Sequence[int], channels: Sequence[int] | None = None
) -> dict[str, Any]:
    matched = {'type': 'ghost_plugin.MatchedLevels', 'backbone': new}
    matched.update(given=list(given), strides=list(strides))
    return {**matched, 'channels': list(channels)} if channels else matched


def _channels(maps: Sequence[Map]) -> list[int]:
    return [channels for channels, _ in maps]


def _reader(part: Mapping) -> str:
    """The parts that read the feature maps of the backbone, by name."""
    heads = [key for key in part if key.endswith('head')]
    return type_of(part['neck']) if part.get('neck') else ' and '.join(heads) or str(part['type'])
