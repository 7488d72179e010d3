"""Put another backbone into a config of MMDetection or MMPretrain.

The neck's and the head's channels come from running the new backbone once, not from a table. The
result inherits the original config and holds the difference only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import _optional, specs
from . import classifiers, detectors
from .places import find_part, nested, type_of
from .probing import deepest_stride, features
from .training import look_change, training_change

_optional.require('mmengine', 'mmcv')

from mmengine.config import Config

_SMALL = 8  # deepest stride up to which a classifier is one for small pictures


@dataclass(frozen=True)
class Swap:
    """The difference that puts a backbone into a config.

    Attributes:
        change: Top-level keys and values of a config that inherits the original.
        remarks: One line each about what had to be added, replaced or dropped.
        part: Keys that lead from the model to the detector or classifier with the backbone.
    """

    change: dict[str, Any]
    remarks: tuple[str, ...]
    part: tuple[str, ...] = field(default=())


def is_classifier(part: Mapping) -> bool:
    """Whether a part of a config is a classifier (or learns for one) and not a detector."""
    return not any(key.endswith('head') and key != 'head' for key in part)


def swap_backbone(
    cfg: Config,
    backbone: str,
    *,
    pretrained: str | None = None,
    lr_scale: float | None = None,
    backbone_lr: float | None = None,
    **arguments: Any,
) -> Swap:
    """The change that puts ``backbone`` into a config.

    Args:
        cfg: Config of a detector, of a classifier, or of a tracker or a semi-supervised detector
            with a detector inside.
        backbone: Registered type, such as ``'ghost_plugin.GhostNet'``.
        pretrained: File or address of the backbone's weights.
        lr_scale: Factor of the learning rate.
        backbone_lr: Learning rate of the backbone as a factor of that of the rest.
        arguments: Of the backbone; without ``out_indices`` the levels are those whose strides the
            old backbone has, and the final conv for a classifier.

    Raises:
        ValueError: No backbone in the config, one that cannot be swapped, or options that do not
            fit it.
    """
    path, part = find_part(cfg.get('model'))
    classifier = is_classifier(part)
    scope = cfg.get('default_scope') or ('mmpretrain' if classifier else 'mmdet')
    new = {'type': backbone, **arguments}
    if pretrained:
        new['init_cfg'] = {'type': 'Pretrained', 'checkpoint': pretrained}
    channels = _image_channels(cfg, part)
    if channels != 3:
        new.setdefault('in_channels', channels)
    if classifier:
        inner, remarks = _classifier(part, new, scope)
    else:
        inner, remarks = _detector(part, new, scope)
    change, more = training_change(cfg, lr_scale, backbone_lr)
    model = nested(path, inner)
    if pretrained and channels == 3:
        look = look_change(cfg, cfg.model)
        more += ['mean, std and colours become those of ImageNet weights'] if look else []
        model.update({'data_preprocessor': look['model']} if 'model' in look else {})
        change.update({'data_preprocessor': look['top']} if 'top' in look else {})
    return Swap({'model': model, **change}, (*remarks, *more), path)


def _image_channels(cfg: Mapping, part: Mapping) -> int:
    look = part.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return part['backbone'].get('in_channels', len(look.get('mean') or (0, 0, 0)))


def _ours(new: Mapping) -> bool:
    return str(new['type']).startswith('ghost_plugin.')


def _detector(part: Mapping, new: dict, scope: str) -> tuple[dict[str, Any], list[str]]:
    old = features(part['backbone'], scope)
    chosen = 'out_indices' in new or not _ours(new)
    if _ours(new):
        specs.find(new['type'])
    if not chosen:
        new = {**new, **detectors.levels(part, old, new)}
    return detectors.backbone_change(part, new, old, scope, chosen)


def _classifier(part: Mapping, new: dict, scope: str) -> tuple[dict[str, Any], list[str]]:
    if _ours(new):
        spec = specs.find(new['type'])
        new = {**classifiers.levels(part, spec.deepest), **new}
        if spec.deepest == specs.FINAL_LEVEL and _for_small_pictures(part, scope):
            new.setdefault('stem_stride', 1)
    return classifiers.backbone_change(part, new, scope)


def _for_small_pictures(part: Mapping, scope: str) -> bool:
    if type_of(part.get('neck')) != 'GlobalAveragePooling':
        return False  # tokens, and networks too big to ask
    stride = deepest_stride(part['backbone'], scope)
    return stride is not None and stride <= _SMALL
