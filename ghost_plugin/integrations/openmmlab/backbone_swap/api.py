"""Put another backbone into a config of an OpenMMLab package.

The channels of necks and heads come from running the new backbone once, not from a table. The
result inherits the original config and holds the difference only.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....utils import optional
from .config_tree import find_part, nest
from .dummy_batches import image_channels
from .kinds import find_kind
from .schedule import old_weights_change, preprocessor_change, training_change

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
    backbone_args: Mapping[str, Any] | None = None,
    *,
    pretrained: str | None = None,
    lr_scale: float | None = None,
    backbone_lr: float | None = None,
    **deprecated: Any,
) -> Swap:
    """Compute the change that puts ``backbone`` into a config; the config is not modified.

    Args:
        cfg: Config of a classifier, detector, segmentor or pose estimator, or of a tracker or a
            semi-supervised detector with a detector inside.
        backbone: Registered type, such as ``'ghost_plugin.GhostNet'``.
        backbone_args: Arguments of the backbone, such as ``{'width': 0.5}``; without
            ``out_indices`` the levels are those whose strides the old backbone has, and the final
            conv for a classifier.
        pretrained: File or address of the backbone's weights.
        lr_scale: Factor of the learning rate.
        backbone_lr: Learning rate of the backbone as a factor of that of the rest.
        deprecated: Arguments of the backbone as keywords; use ``backbone_args``.

    Raises:
        ValueError: No backbone in the config, one that cannot be swapped, a kind of model that is
            not known, a part whose channels cannot follow, or arguments that do not fit it.
    """
    if deprecated:
        warnings.warn(
            f'arguments of the backbone go into a dict: backbone_args={deprecated!r}',
            FutureWarning,
            stacklevel=2,
        )
    path, part = find_part(cfg.get('model'))
    kind = find_kind(part, cfg.get('default_scope'))
    scope = cfg.get('default_scope') or kind.scope
    new = {'type': backbone, **(backbone_args or {}), **deprecated}
    if pretrained:
        new['init_cfg'] = {'type': 'Pretrained', 'checkpoint': pretrained}
    mean = (part.get('data_preprocessor') or cfg.get('data_preprocessor') or {}).get('mean')
    channels = image_channels(part, default=len(mean or (0, 0, 0)))
    if channels != 3:
        new.setdefault('in_channels', channels)
    inner, remarks = kind.change(part, new, scope)
    outer, inner, dropped = old_weights_change(cfg.model, part, inner)
    change, more = training_change(cfg, lr_scale, backbone_lr)
    remarks = [*remarks, *dropped, *more]
    model = {**outer, **nest(path, inner)}
    if pretrained and channels == 3:
        changes = [(target, preprocessor_change(owner.get('data_preprocessor')))
                   for target, owner in ((model, cfg.model), (change, cfg))]  # fmt: skip
        for target, found in changes:
            target.update({'data_preprocessor': found} if found else {})
        if any(found for _, found in changes):
            remarks.append('mean, std and colours become those of ImageNet weights')
    return Swap({'model': model, **change}, tuple(remarks), path)
