"""Where the backbone of a config stands, and how a change deep in a model is written."""

from collections.abc import Callable, Mapping
from typing import Any

_OWN = {  # models and necks that only their own backbone can serve
    'TridentFasterRCNN': 'its heads want the three branches of TridentResNet; use a Faster R-CNN',
    'RFP': 'this neck runs a second DetectoRS_ResNet of its own on its outputs; swap in a config '
    'with an FPN, such as cascade-rcnn_r50-sac',
}
# Pretraining that hides patches from the backbone: it is called with masks, not with pictures.
_MASKED = (
    'MAE BEiT CAE EVA MFF MILAN MaskFeat MixMIM SimMIM SparK iTPN'
).split()  # fmt: skip


def find_part(model: Mapping) -> tuple[tuple[str, ...], Mapping]:
    """Path to the model with the backbone, and that part of the config.

    Trackers and semi-supervised detectors hold the detector inside.

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
    _refuse_own(part)
    return path, part


def _refuse_own(part: Mapping) -> None:
    for kind in (part.get('type'), type_of(part.get('neck'))):
        if kind in _OWN:
            raise ValueError(f'{kind} keeps its backbone: {_OWN[kind]}')
        if kind in _MASKED:
            raise ValueError(
                f'{kind} hides patches inside its own backbone; swap the backbone of the '
                'classifier that is trained afterwards'
            )


def type_of(cfg: Any) -> str:
    """Registered name of a part without its scope; of the first where there is a list."""
    first = cfg[0] if isinstance(cfg, list | tuple) and cfg else cfg
    return str(first.get('type')).split('.')[-1] if isinstance(first, Mapping) else 'none'


def is_ours(backbone: Mapping) -> bool:
    """Whether the config of a backbone names one of this package."""
    return str(backbone['type']).startswith('ghost_plugin.')


def nested(path: tuple[str, ...], change: Any) -> Any:
    """A change with the keys of a path around it."""
    for key in reversed(path):
        change = {key: change}
    return change


def replaced(node: Any, swap: Callable[[str, Any, Mapping], Any]) -> Any:
    """The difference that ``swap`` makes to a tree of dicts, None where it makes none.

    Args:
        node: Dict, list or value; lists with a change are restated whole, as configs want it.
        swap: Called with key, value and the dict that holds them; what it returns is the new
            value, None leaves it.
    """
    if isinstance(node, Mapping):
        found = {}
        for key, value in node.items():
            new = swap(key, value, node)
            found[key] = replaced(value, swap) if new is None or new == value else new
        return {key: value for key, value in found.items() if value is not None} or None
    if isinstance(node, list | tuple) and any(isinstance(item, Mapping) for item in node):
        parts = [replaced(item, swap) for item in node]
        if any(parts):
            return [merged(old, new) for old, new in zip(node, parts, strict=True)]
    return None


def merged(old: Any, new: Any) -> Any:
    """A copy of plain dicts with a change in it."""
    if not isinstance(old, Mapping):
        return old if new is None else new
    plain = {key: merged(value, None) for key, value in old.items()}
    for key, value in (new or {}).items():
        plain[key] = merged(old[key], value) if isinstance(old.get(key), Mapping) else value
    return plain
