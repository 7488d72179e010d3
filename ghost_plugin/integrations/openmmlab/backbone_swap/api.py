"""Put another backbone into a config of an OpenMMLab package.

The channels of necks and heads come from running the new backbone once, not from a table. The
result inherits the original config and holds the difference only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....utils import optional
from .config_tree import find_part, nested
from .kinds import find_kind
from .schedule import look_change, old_weights_change, training_change

optional.require('mmengine', 'mmcv')

from mmengine.config import Config


@dataclass(frozen=True)
class Swap:
    """The difference that puts a backbone into a config.

    Attributes:
        change: Top-level keys and values of a config that inherits the original.
        remarks: One line each about what had to be added, replaced or dropped.
        part: Keys that lead from the model to the model with the backbone.
    """

    change: dict[str, Any]
    remarks: tuple[str, ...]
    part: tuple[str, ...] = field(default=())


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
        cfg: Config of a classifier, detector, segmentor or pose estimator, or of a tracker or a
            semi-supervised detector with a detector inside.
        backbone: Registered type, such as ``'ghost_plugin.GhostNet'``.
        pretrained: File or address of the backbone's weights.
        lr_scale: Factor of the learning rate.
        backbone_lr: Learning rate of the backbone as a factor of that of the rest.
        arguments: Of the backbone; without ``out_indices`` the levels are those whose strides the
            old backbone has, and the final conv for a classifier.

    Raises:
        ValueError: No backbone in the config, one that cannot be swapped, a kind of model that is
            not known, a part whose channels cannot follow, or options that do not fit it.
    """
    path, part = find_part(cfg.get('model'))
    kind = find_kind(part, cfg.get('default_scope'))
    scope = cfg.get('default_scope') or kind.scope
    new = {'type': backbone, **arguments}
    if pretrained:
        new['init_cfg'] = {'type': 'Pretrained', 'checkpoint': pretrained}
    channels = _image_channels(cfg, part)
    if channels != 3:
        new.setdefault('in_channels', channels)
    inner, remarks = kind.change(part, new, scope)
    outer, inner, dropped = old_weights_change(cfg.model, part, inner)
    change, more = training_change(cfg, lr_scale, backbone_lr)
    more = [*dropped, *more]
    model = {**outer, **nested(path, inner)}
    if pretrained and channels == 3:
        look = look_change(cfg, cfg.model)
        more += ['mean, std and colours become those of ImageNet weights'] if look else []
        model.update({'data_preprocessor': look['model']} if 'model' in look else {})
        change.update({'data_preprocessor': look['top']} if 'top' in look else {})
    return Swap({'model': model, **change}, (*remarks, *more), path)


def _image_channels(cfg: Mapping, part: Mapping) -> int:
    look = part.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return part['backbone'].get('in_channels', len(look.get('mean') or (0, 0, 0)))
