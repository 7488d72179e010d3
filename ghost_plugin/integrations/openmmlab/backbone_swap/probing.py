"""What a backbone returns, asked of the backbone: channels and stride of every map."""

import functools
import json
from collections.abc import Callable
from typing import TypeVar

import torch

from ....utils import optional

optional.require('mmengine', 'mmcv')

from mmengine.registry import MODELS, init_default_scope

_SIDE = 128  # of the picture that backbones are shown, pixels; all strides up to 128 divide it
# What has no say in the shape of a map; old norms with eps=0 no longer run in PyTorch.
_ASIDE = ('init_cfg', 'pretrained', 'norm_cfg')
Map = tuple[int, int]  # channels, stride in pixels
Result = TypeVar('Result')


def features(cfg: dict, scope: str) -> list[Map]:
    """Channels and stride of the maps of a backbone, built without its weights.

    Args:
        cfg: Config of the backbone.
        scope: Package whose names it uses, such as ``'mmdet'``.

    Raises:
        ValueError: It cannot be built, or does not return maps.
    """
    bare = {key: value for key, value in cfg.items() if key not in _ASIDE}
    try:
        return list(_asked(json.dumps(bare, sort_keys=True), scope))
    except TypeError:  # holds more than plain values
        return list(_maps(bare, scope))


@functools.lru_cache(maxsize=256)
def _asked(cfg: str, scope: str) -> tuple[Map, ...]:
    return tuple(_maps(json.loads(cfg), scope))


def _maps(cfg: dict, scope: str) -> list[Map]:
    maps = _outputs(cfg, scope)
    if any(len(getattr(one, 'shape', ())) != 4 for one in maps):
        raise ValueError(f'the backbone {cfg.get("type")} returns tokens or scores, not maps')
    return [(one.shape[1], round(_SIDE / one.shape[-1])) for one in maps]


def deepest_stride(cfg: dict, scope: str) -> int | None:
    """Stride of the last map of a backbone, None where it returns none for the probe's side."""
    try:
        return features(cfg, scope)[-1][1]
    except ValueError:
        return None


def on_meta_or_cpu(run: Callable[[str], Result]) -> Result:
    """What ``run`` returns on the meta device, or on the CPU where that fails."""
    try:
        return run('meta')  # costs neither memory nor time
    except Exception:  # compiled ops and code that looks at its own values need real ones
        return run('cpu')


def _outputs(cfg: dict, scope: str) -> list[torch.Tensor]:
    init_default_scope(scope)
    try:
        return on_meta_or_cpu(functools.partial(_run, cfg))
    except Exception as error:  # foreign constructors raise whatever they like
        reason = (str(error).splitlines() or [''])[-1]
        raise ValueError(
            f'cannot build backbone {cfg.get("type")!r}: {type(error).__name__}: {reason}'
        ) from error


def _run(cfg: dict, device: str) -> list[torch.Tensor]:
    with torch.device(device), torch.no_grad():
        backbone = MODELS.build(dict(cfg))
        backbone.eval()  # on its own line: many of OpenMMLab's return None here
        maps = backbone(torch.zeros(1, cfg.get('in_channels', 3), _SIDE, _SIDE))
    return list(maps) if isinstance(maps, tuple | list) else [maps]
