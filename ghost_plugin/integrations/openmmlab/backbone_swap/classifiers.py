"""Fit a classifier's neck and head to a new backbone, or replace them where they read tokens."""

from collections.abc import Mapping
from typing import Any

from .... import specs
from ....specs import FINAL_LEVEL
from .config_tree import first_of, is_ghost_backbone, type_name
from .probing import probe_levels

_POOL = {'type': 'GlobalAveragePooling'}
# Heads that read tokens, several branches or finished scores; a linear head replaces them.
_REPLACED_HEADS = (
    'ClsHead', 'ConformerHead', 'DeiTClsHead', 'EfficientFormerClsHead', 'LeViTClsHead',
    'MultiLabelClsHead', 'VigClsHead', 'VisionTransformerClsHead',
)  # fmt: skip
_KEPT = ('num_classes', 'loss', 'topk', 'cal_acc', 'thr')  # keys of a head that is replaced
_POOLING_HEADS = ('CSRAClsHead',)
_TOKEN_NECKS = ('ClsBatchNormNeck',)
_SMALL_STRIDE = 8  # pixels; a classifier whose deepest stride is at most this is for small images


def _pyramid_size(part: Mapping) -> int:
    """Number of levels that the neck of a classifier reads; 0 for necks that read the last only."""
    channels = (first_of(part.get('neck')) or {}).get('in_channels')
    return len(channels) if isinstance(channels, list | tuple) else 0


def change(part: Mapping, new: dict[str, Any], scope: str) -> tuple[dict[str, Any], list[str]]:
    """Compute the change of a classifier.

    Args:
        part: Config of the classifier.
        new: Config of the new backbone; levels are chosen for one of this package without
            ``out_indices``.
        scope: Package in which names are looked up.

    Returns:
        The change, and remarks about what had to be replaced.

    Raises:
        ValueError: The neck wants another number of levels, or the head's classes are not known.
    """
    if is_ghost_backbone(new):
        spec = specs.find(new['type'])
        levels = range(FINAL_LEVEL - _pyramid_size(part), FINAL_LEVEL) or (spec.deepest,)
        new = {'out_indices': tuple(levels), **new}
        if spec.deepest == FINAL_LEVEL and _for_small_images(part, scope):
            new.setdefault('stem_stride', 1)
    channels, wanted = [width for width, _ in probe_levels(new, scope)], _pyramid_size(part)
    if wanted not in (0, len(channels)):
        raise ValueError(
            f'the neck {type_name(part["neck"])} wants {wanted} levels and the backbone gives '
            f'{len(channels)} (channels {channels}); choose as many with --out-indices'
        )
    neck, reading = _fit_neck(part, channels)
    head, remarks = _fit_head(part, reading)
    return {'backbone': {'_delete_': True, **new}, **neck, **head}, remarks


def _for_small_images(part: Mapping, scope: str) -> bool:
    if type_name(part.get('neck')) != 'GlobalAveragePooling':
        return False  # tokens, and networks that are too large to probe
    try:
        return probe_levels(part['backbone'], scope)[-1][1] <= _SMALL_STRIDE
    except ValueError:
        return False


def _fit_neck(part: Mapping, channels: list[int]) -> tuple[dict[str, Any], int | None]:
    """The neck's change, and its output channels where they follow those of the backbone."""
    neck = part.get('neck')
    first = first_of(neck) or {}
    if neck and type_name(neck) not in _TOKEN_NECKS:
        if first.get('dim', 2) != 2:  # it pooled tokens
            return {'neck': {'dim': 2}}, channels[-1]
        if 'in_channels' not in first:
            return {}, channels[-1]
        change = {'in_channels': channels if _pyramid_size(part) else channels[-1]}
        if first.get('with_avg_pool') is False:  # it read a vector
            change['with_avg_pool'] = True
        if first is neck:
            return {'neck': change}, None
        return {'neck': [{**first, **change}, *(dict(other) for other in neck[1:])]}, None
    if not part.get('head') or type_name(part['head']) in _POOLING_HEADS:
        return {}, channels[-1]
    return {'neck': {**({'_delete_': True} if 'neck' in part else {}), **_POOL}}, channels[-1]


def _fit_head(part: Mapping, channels: int | None) -> tuple[dict[str, Any], list[str]]:
    head = part.get('head')
    if not head or channels is None:
        return {}, []
    if type_name(head) in _REPLACED_HEADS:
        return _linear(part, channels)
    if 'in_channels' not in head:
        raise ValueError(
            f'the head {head.get("type")} has no in_channels to fit; use a LinearClsHead'
        )
    return {'head': {'in_channels': channels}}, []


def _linear(part: Mapping, channels: int) -> tuple[dict[str, Any], list[str]]:
    head, kind = part['head'], type_name(part['head'])
    kept = {key: head[key] for key in _KEPT if key in head}
    kept.setdefault('num_classes', part['backbone'].get('num_classes'))
    if not kept['num_classes']:
        raise ValueError(f'the head {kind} does not say num_classes; give them in the config')
    linear = 'MultiLabelLinearClsHead' if kind == 'MultiLabelClsHead' else 'LinearClsHead'
    new = {'_delete_': True, 'type': linear, 'in_channels': channels, **kept}
    return {'head': new}, [f'{kind} reads no maps; a {linear} takes its place']
