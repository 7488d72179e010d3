"""Find the backbone in a config, and write changes deep in a tree of dicts and lists."""

from collections.abc import Callable, Mapping
from typing import Any

# Models and necks that work with their own backbone only, and what to do instead.
_FIXED_BACKBONE = {
    'TridentFasterRCNN': 'its heads want the three branches of TridentResNet; use a Faster R-CNN',
    'RFP': 'this neck runs a second DetectoRS_ResNet of its own on its outputs; swap in a config '
    'with an FPN, such as cascade-rcnn_r50-sac',
}
# Masked pretraining: the backbone is called with masks, not with images.
_MASKED = (
    'MAE BEiT CAE EVA MFF MILAN MaskFeat MixMIM SimMIM SparK iTPN'
).split()  # fmt: skip


def find_part(model: Mapping) -> tuple[tuple[str, ...], Mapping]:
    """Find the model that holds the backbone; trackers and semi-supervised detectors nest it.

    Returns:
        Keys that lead to that model, and its config.

    Raises:
        ValueError: No backbone, or one that its model cannot do without.
    """
    path: tuple[str, ...] = ()
    part = model or {}
    if 'backbone' not in part and isinstance(part.get('detector'), Mapping):
        path, part = ('detector',), part['detector']
    if not isinstance(part.get('backbone'), Mapping):
        kind = part.get('type')
        about = f'the {kind} of this config' if kind else 'this config'
        raise ValueError(
            f'{about} has no model.backbone to swap; give the config of a classifier, detector, '
            'segmentor or pose estimator with one'
        )
    for kind in (part.get('type'), type_name(part.get('neck'))):
        if kind in _FIXED_BACKBONE:
            raise ValueError(f'{kind} keeps its backbone: {_FIXED_BACKBONE[kind]}')
        if kind in _MASKED:
            raise ValueError(
                f'{kind} hides patches inside its own backbone; swap the backbone of the '
                'classifier that is trained afterwards'
            )
    return path, part


def first_of(cfg: Any) -> Any:
    """The first item of a list of configs, or the config itself."""
    return cfg[0] if isinstance(cfg, list | tuple) and cfg else cfg


def listed(value: Any) -> list:
    """The items of a list of a config, or the only value."""
    return list(value) if isinstance(value, list | tuple) else [value]


def type_name(cfg: Any) -> str:
    """Registered name of a module (the first of a list) without its scope."""
    first = first_of(cfg)
    return str(first.get('type')).split('.')[-1] if isinstance(first, Mapping) else 'none'


def is_ghost_backbone(backbone: Mapping) -> bool:
    """True when the config of a backbone names one of this package."""
    return str(backbone['type']).startswith('ghost_plugin.')


def nest(path: tuple[str, ...], change: Any) -> Any:
    """Wrap a change into the keys of a path.

    Args:
        path: Keys, the outermost first.
        change: Innermost value.
    """
    for key in reversed(path):
        change = {key: change}
    return change


def tree_change(node: Any, replace: Callable[[str, Any, Mapping], Any]) -> Any:
    """Collect the changes that ``replace`` makes to a tree of dicts and lists.

    Args:
        node: Dict, list or value. A list with a change is restated whole, as configs need it.
        replace: Called with key, value and the dict that holds them; returns the new value, or
            None to keep the old one.

    Returns:
        The change, None where there is none.
    """
    if isinstance(node, Mapping):
        found = {}
        for key, value in node.items():
            new = replace(key, value, node)
            found[key] = tree_change(value, replace) if new is None or new == value else new
        return {key: value for key, value in found.items() if value is not None} or None
    if isinstance(node, list | tuple) and any(isinstance(item, Mapping) for item in node):
        parts = [tree_change(item, replace) for item in node]
        if any(parts):
            return [merge(old, new) for old, new in zip(node, parts, strict=True)]
    return None


def merge(old: Any, change: Any) -> Any:
    """Apply a change to a config.

    Args:
        old: Config; not modified.
        change: Values that differ; None leaves ``old`` as it is.

    Returns:
        A copy in plain dicts.
    """
    if not isinstance(old, Mapping):
        return old if change is None else change
    plain = {key: merge(value, None) for key, value in old.items()}
    for key, value in (change or {}).items():
        plain[key] = merge(old[key], value) if isinstance(old.get(key), Mapping) else value
    return plain
