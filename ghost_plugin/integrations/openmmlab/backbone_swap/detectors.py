"""Give detectors, segmentors and pose estimators the levels of a new backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from .... import specs
from ....specs import FINAL_LEVEL
from . import consumers
from .config_tree import is_ghost_backbone, type_name
from .probing import Level, levels_in_training, probe_levels

_STAGED = ('MSPNHead',)  # heads that read feature maps of several stages, each with its levels
_STRIDES = tuple(2 ** (level + 1) for level in range(FINAL_LEVEL))  # of the levels 0..4
_DEEPEST = FINAL_LEVEL - 1


def choose_levels(part: Mapping, old: Sequence[Level], new: Mapping) -> dict[int, int]:
    """Map each stride of the old backbone to the level of a Ghost backbone, its last one.

    Args:
        part: Config of the model.
        old: Levels of its backbone.
        new: Config of the new backbone, with its ``output_stride`` if it has one.

    Raises:
        ValueError: Strides that are no powers of two, or 1.
    """
    strides = sorted({stride for _, stride in old})
    if any(stride not in (*_STRIDES, 64, 128) for stride in strides):
        raise ValueError(
            f'the old backbone has levels of strides {strides}, the new one {list(_STRIDES)}; '
            'choose levels with --out-indices'
        )
    found = {stride: _STRIDES.index(min(stride, _STRIDES[-1])) for stride in strides}
    if _is_dilated(part) or strides[-1] >= new.get('output_stride', _STRIDES[-1]):
        found[strides[-1]] = _DEEPEST  # dilated stages share a stride
    return found


def _is_dilated(part: Mapping) -> bool:
    rates = part['backbone'].get('dilations')
    return isinstance(rates, list | tuple) and any(rate > 1 for rate in rates)


def change(
    part: Mapping, new: dict[str, Any], scope: str, *, projections: bool, last_level: bool
) -> tuple[dict[str, Any], list[str]]:
    """Compute the change that puts a backbone into a model.

    Args:
        part: Config of the model.
        new: Config of the new backbone; levels are chosen for one of this package without
            ``out_indices``.
        scope: Package in which names are looked up.
        projections: Allow 1x1 convs that restore the old channels where a reader cannot change.
        last_level: A head that names no level reads the last one.

    Returns:
        The change, and remarks about what had to be added.

    Raises:
        ValueError: A reader wants another number of levels than the user chose, or channels that
            cannot be had.
    """
    old = probe_levels(part['backbone'], scope)
    trained = levels_in_training(part['backbone'], scope) if last_level else None
    if trained not in (None, len(old)):
        raise ValueError(
            f'the backbone {type_name(part["backbone"])} returns {trained} feature maps in '
            f'training and {len(old)} otherwise, and {_reader(part)} reads them so; no other '
            'backbone does'
        )
    backbone, remarks = new, []
    if is_ghost_backbone(new):
        specs.find(new['type'])  # raises for an unknown name
        if 'out_indices' not in new:
            new, backbone, remarks = _with_levels(part, old, new, scope)
    given, maps = probe_levels(new, scope), probe_levels(backbone, scope)
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
    if fitted and last_level and not consumers.heads_build(part, fitted, scope):
        fitted = None
    if fitted is None:
        if not projections:
            raise ValueError(
                f'{_reader(part)} reads levels of {_channels(old)} channels and names no channels '
                f'that could become the {_channels(maps)} of the new backbone; change it by hand'
            )
        read = consumers.levels_read(part, old, scope)
        wanted = [
            before if is_read else now
            for (before, _), (now, _), is_read in zip(old, maps, read, strict=True)
        ]
        backbone = _adapter(new, given, [s for _, s in maps], wanted)
        if type_name(part.get('head')) in _STAGED:
            backbone['nested'] = True
        remarks.append(
            f'1x1 convs make the {_channels(old)} channels that {_reader(part)} must have'
        )
    return {'backbone': {'_delete_': True, **backbone}, **(fitted or {})}, remarks


def _with_levels(
    part: Mapping, old: Sequence[Level], new: dict[str, Any], scope: str
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Choose ``out_indices``; return the backbone, an adapter around it if needed, and remarks."""
    strides, remarks = [stride for _, stride in old], []
    if _is_dilated(part) and max(strides) in (8, 16):
        new = {'output_stride': max(strides), **new}
    chosen = choose_levels(part, old, new)
    new = {**new, 'out_indices': tuple(sorted(set(chosen.values())))}
    if max(chosen.values()) < _DEEPEST:
        remarks.append(
            f'the old feature maps end at stride {max(strides)}, so the new backbone ends at '
            f'level {max(chosen.values())} of {_DEEPEST}'
        )
    given = probe_levels(new, scope)
    if len(given) == len(old) and strides == sorted(strides):  # MSPN begins with the deepest
        return new, new, remarks
    stride_of = {level: s for level, (_, s) in zip(new['out_indices'], given, strict=True)}
    ready = (*stride_of.values(), *(s for s in strides if s > max(stride_of.values())))
    strides = [s if s in ready else stride_of[chosen[s]] for s in strides]
    remarks.append(f'levels of strides {strides} are made of {[s for _, s in given]}')
    return new, _adapter(new, given, strides), remarks


def _adapter(
    new: dict, given: Sequence[Level], strides: Sequence[int], channels: Sequence[int] | None = None
) -> dict[str, Any]:
    adapter = {'type': 'ghost_plugin.FeatureAdapter', 'backbone': new}
    adapter.update(given=list(given), strides=list(strides))
    return {**adapter, 'channels': list(channels)} if channels else adapter


def _channels(levels: Sequence[Level]) -> list[int]:
    return [channels for channels, _ in levels]


def _reader(part: Mapping) -> str:
    """Name the parts that read the levels of the backbone."""
    heads = [key for key in part if key.endswith('head')]
    return type_name(part['neck']) if part.get('neck') else ' and '.join(heads) or str(part['type'])
