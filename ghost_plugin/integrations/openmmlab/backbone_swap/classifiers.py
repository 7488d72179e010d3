"""A classifier's neck and head fitted to a new backbone, or replaced where they read tokens."""

from collections.abc import Mapping
from typing import Any

from .... import specs
from ....specs import FINAL_LEVEL
from .config_tree import is_ours, type_of
from .probing import deepest_stride, features

_POOL = {'type': 'GlobalAveragePooling'}
# Heads that read tokens, several branches or finished scores, and the one that follows maps.
_LINEAR = {
    'ClsHead': 'LinearClsHead',
    'ConformerHead': 'LinearClsHead',
    'DeiTClsHead': 'LinearClsHead',
    'EfficientFormerClsHead': 'LinearClsHead',
    'LeViTClsHead': 'LinearClsHead',
    'MultiLabelClsHead': 'MultiLabelLinearClsHead',
    'VigClsHead': 'LinearClsHead',
    'VisionTransformerClsHead': 'LinearClsHead',
}
_KEPT = ('num_classes', 'loss', 'topk', 'cal_acc', 'thr')  # of a head that is replaced
_READS_MAPS = ('CSRAClsHead',)  # heads that pool by themselves
_TOKEN_NECKS = ('ClsBatchNormNeck',)
_SMALL_STRIDE = 8  # deepest stride, pixels, up to which a classifier is one for small images


def levels(part: Mapping, deepest: int) -> dict[str, Any]:
    """``out_indices`` of ours: the last, or one each for a neck that reads a pyramid."""
    wanted = _pyramid(part)
    if wanted:
        return {'out_indices': tuple(range(FINAL_LEVEL - wanted, FINAL_LEVEL))}
    return {'out_indices': (deepest,)}


def _pyramid(part: Mapping) -> int:
    channels = _first(part.get('neck')).get('in_channels')
    return len(channels) if isinstance(channels, list | tuple) else 0


def _first(neck: Any) -> Mapping:
    first = neck[0] if isinstance(neck, list | tuple) and neck else neck
    return first or {}


def change(part: Mapping, new: dict[str, Any], scope: str) -> tuple[dict[str, Any], list[str]]:
    """The change to a classifier, and remarks about what had to be replaced.

    Args:
        part: Config of the classifier.
        new: Config of the new backbone; of ours, levels are chosen where it has no
            ``out_indices``.
        scope: Where names are looked up.

    Raises:
        ValueError: The neck wants another number of maps, or the head's classes are not known.
    """
    if is_ours(new):
        spec = specs.find(new['type'])
        new = {**levels(part, spec.deepest), **new}
        if spec.deepest == FINAL_LEVEL and _for_small_images(part, scope):
            new.setdefault('stem_stride', 1)
    channels = [width for width, _ in features(new, scope)]
    if _pyramid(part) not in (0, len(channels)):
        raise ValueError(
            f'the neck {type_of(part["neck"])} wants {_pyramid(part)} levels and the backbone '
            f'gives {len(channels)} (channels {channels}); choose as many with --out-indices'
        )
    neck, reading = _fit_neck(part, channels)
    head, remarks = _fit_head(part, reading)
    return {'backbone': {'_delete_': True, **new}, **neck, **head}, remarks


def _for_small_images(part: Mapping, scope: str) -> bool:
    if type_of(part.get('neck')) != 'GlobalAveragePooling':
        return False  # tokens, and networks too big to ask
    stride = deepest_stride(part['backbone'], scope)
    return stride is not None and stride <= _SMALL_STRIDE


def _fit_neck(part: Mapping, channels: list[int]) -> tuple[dict[str, Any], int | None]:
    """The neck's change, and the channels behind it where they follow the backbone's."""
    neck = part.get('neck')
    first = _first(neck)
    if neck and type_of(neck) not in _TOKEN_NECKS:
        if first.get('dim', 2) != 2:  # it pooled tokens
            return {'neck': {'dim': 2}}, channels[-1]
        if 'in_channels' not in first:
            return {}, channels[-1]
        change = {'in_channels': channels if _pyramid(part) else channels[-1]}
        if first.get('with_avg_pool') is False:  # it read a vector
            change['with_avg_pool'] = True
        if first is neck:
            return {'neck': change}, None
        return {'neck': [{**first, **change}, *(dict(other) for other in neck[1:])]}, None
    if not part.get('head') or type_of(part['head']) in _READS_MAPS:
        return {}, channels[-1]
    return {'neck': {**({'_delete_': True} if 'neck' in part else {}), **_POOL}}, channels[-1]


def _fit_head(part: Mapping, channels: int | None) -> tuple[dict[str, Any], list[str]]:
    head = part.get('head')
    if not head or channels is None:
        return {}, []
    if type_of(head) in _LINEAR:
        return _linear(part, channels)
    if 'in_channels' not in head:
        raise ValueError(
            f'the head {head.get("type")} has no in_channels to fit; use a LinearClsHead'
        )
    return {'head': {'in_channels': channels}}, []


def _linear(part: Mapping, channels: int) -> tuple[dict[str, Any], list[str]]:
    head, kind = part['head'], type_of(part['head'])
    kept = {key: head[key] for key in _KEPT if key in head}
    kept.setdefault('num_classes', part['backbone'].get('num_classes'))
    if not kept['num_classes']:
        raise ValueError(f'the head {kind} does not say num_classes; give them in the config')
    new = {'_delete_': True, 'type': _LINEAR[kind], 'in_channels': channels, **kept}
    return {'head': new}, [f'{kind} reads no maps; a {_LINEAR[kind]} takes its place']
