"""Build modules of other packages and read what they return: channels and strides of levels."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from ....utils import optional

optional.require('mmengine', 'mmcv')

from mmengine.registry import MODELS, init_default_scope

_SIZE = 128  # of the probe image, pixels; all strides up to 128 divide it
# Keys that do not affect shapes; old norms with eps=0 do not run in current PyTorch.
_IGNORED = ('init_cfg', 'pretrained', 'norm_cfg')
Level = tuple[int, int]  # channels and stride (pixels) of one feature map
_PROBED: dict[tuple[str, str], list[Level]] = {}  # by config as text, and scope
Result = TypeVar('Result')


def probe_levels(cfg: dict, scope: str) -> list[Level]:
    """Channels and strides of the feature maps of a backbone, built without its weights.

    Args:
        cfg: Config of the backbone.
        scope: Package whose names it uses, such as ``'mmdet'``.

    Raises:
        ValueError: It cannot be built, or does not return feature maps.
    """
    bare = {key: value for key, value in cfg.items() if key not in _IGNORED}
    try:
        text = json.dumps(bare, sort_keys=True)
    except TypeError:  # the config holds more than plain values
        return _probe(bare, scope)
    if (text, scope) not in _PROBED:
        _PROBED[text, scope] = _probe(bare, scope)
    return list(_PROBED[text, scope])


def _probe(cfg: dict, scope: str) -> list[Level]:
    def run(device: str) -> list[torch.Tensor]:
        with torch.device(device), torch.no_grad():
            backbone = MODELS.build(copy.deepcopy(cfg))  # constructors write into it
            backbone.eval()  # on its own line: many of OpenMMLab's return None here
            maps = backbone(torch.zeros(1, cfg.get('in_channels', 3), _SIZE, _SIZE))
        return list(maps) if isinstance(maps, tuple | list) else [maps]

    init_default_scope(scope)
    try:
        maps = on_meta_or_cpu(run)
    except Exception as error:  # constructors of other packages raise anything
        raise ValueError(
            f'cannot build backbone {cfg.get("type")!r}: {describe_error(error)}'
        ) from error
    if isinstance(maps[0], tuple | list):
        if len(maps) > 1:
            raise ValueError(
                f'the backbone {cfg.get("type")} returns feature maps of {len(maps)} networks one '
                'behind the other, and its head reads them all; swap in a config with one stage'
            )
        maps = list(maps[0])
    if any(len(getattr(one, 'shape', ())) != 4 for one in maps):
        raise ValueError(
            f'the backbone {cfg.get("type")} returns tokens or scores, not feature maps'
        )
    return [(one.shape[1], round(_SIZE / one.shape[-1])) for one in maps]


def levels_in_training(cfg: dict, scope: str) -> int | None:
    """Number of feature maps that a backbone returns in training mode; None where it does not run.

    Args:
        cfg: Config of the backbone.
        scope: Package whose names it uses.
    """
    bare = {key: value for key, value in cfg.items() if key not in _IGNORED}

    def run(device: str) -> int:
        with torch.device(device), torch.no_grad():
            backbone = MODELS.build(copy.deepcopy(bare))
            backbone.train()
            maps = backbone(torch.zeros(2, cfg.get('in_channels', 3), _SIZE, _SIZE))
        if isinstance(maps, torch.Tensor):
            return 1
        return len(maps[0] if isinstance(maps[0], tuple | list) else maps)

    init_default_scope(scope)
    try:
        return run('meta')
    except Exception:  # modules of other packages raise anything
        return None


def on_meta_or_cpu(run: Callable[[str], Result]) -> Result:
    """Return ``run('meta')``, which needs no memory or time, or ``run('cpu')`` where that fails."""
    try:
        return run('meta')
    except Exception:  # compiled ops and code that reads its own values need real tensors
        return run('cpu')


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Suppress log lines, such as mmengine's on how every parameter was initialised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def describe_error(error: Exception) -> str:
    """Class and message of an error in one line of at most 300 characters."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
