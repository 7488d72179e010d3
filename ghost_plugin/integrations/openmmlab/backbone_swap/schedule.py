"""Adapt what else belongs to the old backbone: learning rates, weights, mean and std."""

from collections.abc import Mapping
from typing import Any

from .config_tree import listed, type_name

_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ImageNet, RGB, 0..255
# Data preprocessors with the argument bgr_to_rgb; those of MMPretrain have to_rgb.
_BGR_TO_RGB = (
    'ImgDataPreprocessor', 'DetDataPreprocessor', 'TrackDataPreprocessor', 'SegDataPreProcessor',
    'PoseDataPreprocessor',
)  # fmt: skip
# Keys of paramwise_cfg that mmengine's default constructor reads.
_PARAMWISE = (
    'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult',
    'flat_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate',
)  # fmt: skip


def training_change(
    cfg: Mapping, lr_scale: float | None, backbone_lr: float | None
) -> tuple[dict[str, Any], list[str]]:
    """Compute the changes of the optimizer and of ``load_from``.

    Args:
        cfg: The whole config.
        lr_scale: Factor of the learning rate.
        backbone_lr: Learning rate of the backbone as a factor of that of the rest.

    Returns:
        The change of the whole config, and remarks.

    Raises:
        ValueError: A factor that is not above 0, or no ``optim_wrapper`` to scale.
    """
    change, remarks = {}, []
    wrapper = cfg.get('optim_wrapper') or {}
    paramwise = wrapper.get('paramwise_cfg') or {}
    for name, factor in (('--lr-scale', lr_scale), ('--backbone-lr', backbone_lr)):
        if factor is not None and not factor > 0:
            raise ValueError(f'{name} must be above 0, such as 0.5, got {factor}')
        if factor is not None and 'optimizer' not in wrapper:
            raise ValueError(f'{name}: the config has no optim_wrapper.optimizer; leave it out')
    optim: dict[str, Any] = {}
    if lr_scale is not None:
        optim['optimizer'] = {'lr': wrapper['optimizer']['lr'] * lr_scale}
    if 'Decay' in str(wrapper.get('constructor')):
        optim['constructor'] = 'DefaultOptimWrapperConstructor'
        kept = {key: value for key, value in paramwise.items() if key in _PARAMWISE}
        optim['paramwise_cfg'] = {'_delete_': True, **kept} if paramwise else {}
        remarks.append(f'{wrapper["constructor"]} knows the layers of the old backbone only')
    if backbone_lr is not None:
        keys = optim.setdefault('paramwise_cfg', {}).get('custom_keys', {})
        optim['paramwise_cfg']['custom_keys'] = {**keys, 'backbone': {'lr_mult': backbone_lr}}
    if optim:
        change['optim_wrapper'] = optim
    if cfg.get('load_from'):
        change['load_from'] = None
        remarks.append('load_from is dropped: its weights are of the old backbone')
    return change, remarks


def old_weights_change(
    model: Mapping, part: Mapping, change: Mapping
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Drop checkpoints of whole models, and of parts whose channels change.

    Args:
        model: Config of the whole model.
        part: Config of the model with the backbone; ``model`` itself or inside it.
        change: The change of ``part`` so far.

    Returns:
        The change of ``model`` outside ``part``, the change of ``part``, and remarks.
    """
    inner = {**_without_weights(part), **change}
    outer = {} if model is part else _without_weights(model)
    dropped = [f'{key} of the whole model' for key in (*_without_weights(part), *outer)]
    for key in change:
        old = part.get(key)
        if key == 'backbone' or not isinstance(old, Mapping) or '_delete_' in change[key]:
            continue
        if gone := _without_weights(old):
            inner[key] = {**change[key], **gone}
            dropped += [f'{key}.{name}' for name in gone]
    remarks = [f'dropped, as their weights are of the old model: {", ".join(dropped)}']
    return outer, inner, remarks if dropped else []


def _without_weights(cfg: Mapping) -> dict[str, Any]:
    """Compute the change that makes a module load no weights."""
    change: dict[str, Any] = {'pretrained': None} if cfg.get('pretrained') else {}
    init = cfg.get('init_cfg')
    rows = listed(init)
    kept = [dict(row) for row in rows if row and type_name(row) != 'Pretrained']
    if init and len(kept) < len(rows):
        change['init_cfg'] = kept or None
    return change


def preprocessor_change(old: Any) -> dict[str, Any]:
    """Compute the change of a data preprocessor to mean, std and colours of ImageNet weights.

    Args:
        old: Config of the data preprocessor; the change is empty without one.
    """
    if not isinstance(old, Mapping):
        return {}
    if 'data_preprocessor' in old:  # one for several branches
        inner = preprocessor_change(old['data_preprocessor'])
        return {'data_preprocessor': inner} if inner else {}
    colours = 'bgr_to_rgb' if 'bgr_to_rgb' in old or type_name(old) in _BGR_TO_RGB else 'to_rgb'
    new = {'mean': _MEAN, 'std': _STD, colours: True}
    if old.get('rgb_to_bgr'):
        new['rgb_to_bgr'] = False
    same = [(list(old.get(key) or ()) if key in ('mean', 'std') else old.get(key)) for key in new]
    return {} if same == list(new.values()) else new
