"""A model out of an OpenMMLab config, and the look that its data preprocessor gives pictures."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ...training.preprocessing import Preprocessing
from ...utils import optional
from ...utils.modules import call_model, eval_mode

optional.require('mmengine', 'mmcv')

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from .backbone_swap import load_config

Wrap = Callable[[torch.Tensor], Any]


def build(source: str, num_classes: int | None = None) -> tuple[nn.Module, Preprocessing, Wrap]:
    """The model of a config without its weights, how it wants its pictures, and how it is called.

    Args:
        source: File, or ``mmdet::...`` / ``mmpretrain::...`` of an installed package.
        num_classes: Outputs of the head.

    Raises:
        FileNotFoundError: No such config. ValueError: No model in it, or it cannot be built.
    """
    cfg = _config(source)
    if 'model' not in cfg:
        raise ValueError(f'{source} has no model; give the config of a model or FILE.py:FUNCTION')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = cfg.model
    if cfg.get('data_preprocessor') and not model.get('data_preprocessor'):
        model.data_preprocessor = cfg.data_preprocessor  # as the Runner does it
    if num_classes is not None:
        _set_classes(model, num_classes, source)
    try:
        built = MODELS.build(model)
        look = _look(model.get('data_preprocessor') or {}, cfg)
        return built, look, partial(called, built, mode=mode_of(built, look.size))
    except Exception as error:  # foreign constructors raise whatever they like
        reason = ' '.join(str(error).split())
        raise ValueError(f'cannot build {source}: {type(error).__name__}: {reason}') from error


def initialise(model: nn.Module) -> nn.Module:
    """Weights as the Runner initialises them, in place, but for checkpoints, which stay unread.

    Some heads run on such weights only; Sparse R-CNN's proposals are among them.
    """
    for part in model.modules():
        cfg = getattr(part, 'init_cfg', None)
        if isinstance(cfg, list):
            part.init_cfg = [each for each in cfg if each['type'] != 'Pretrained']
        elif cfg and cfg['type'] == 'Pretrained':
            part.init_cfg = None
    if hasattr(model, 'init_weights'):
        model._dump_init_info = lambda *names: None  # a line for each parameter
        model.init_weights()
    return model


def called(model: nn.Module, images: torch.Tensor, mode: str = 'tensor') -> Any:
    """What a model is called with for raw outputs; detectors ask for sizes besides.

    Args:
        model: Of MMPretrain, MMDetection or another package on MMEngine.
        images: (N, 3, H, W).
        mode: Of a detector, as :func:`mode_of` finds it.
    """
    if not _is_detector(model):
        return images
    from mmdet.structures import DetDataSample

    shape = tuple(images.shape[-2:])
    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    info = {**dict.fromkeys(names, shape), 'scale_factor': (1.0, 1.0)}
    samples = [DetDataSample(metainfo=info) for _ in images]
    return {'inputs': images, 'data_samples': samples, 'mode': mode}


@torch.no_grad()
def mode_of(model: nn.Module, size: tuple[int, int]) -> str:
    """``'tensor'``, or ``'predict'`` for detectors that give raw outputs only beside labels."""
    if not _is_detector(model):
        return 'tensor'
    try:
        with eval_mode(model):
            call_model(model, called(model, torch.zeros(1, 3, *size)))
    except Exception:  # whatever their heads miss
        return 'predict'
    return 'tensor'


def _is_detector(model: nn.Module) -> bool:
    return type(model).__module__.startswith('mmdet.')


def _config(source: str) -> Config:
    try:
        return load_config(source)
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # a config is code
        reason = ' '.join(str(error).split())
        hint = '' if '::' in source else f'; a function that builds a model is {source}:FUNCTION'
        raise ValueError(f'cannot read {source}: {type(error).__name__}: {reason}{hint}') from error


def _set_classes(model: Any, number: int, source: str) -> None:
    head = next((model[key] for key in ('head', 'bbox_head') if key in model), {})
    if not isinstance(head, dict) or 'num_classes' not in head:
        raise ValueError(f'{source} has no head with num_classes; change it in the config')
    head['num_classes'] = number


def _look(preprocessor: Any, cfg: Config) -> Preprocessing:
    """OpenMMLab's mean and std are of values within 0..255, in the order of the network."""
    mean, std = (preprocessor.get(key) for key in ('mean', 'std'))
    rgb = preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')
    side = _side(cfg)
    return Preprocessing(
        (side, side),
        tuple(value / 255 for value in mean or (0, 0, 0)),
        tuple(value / 255 for value in std or (1, 1, 1)),
        bgr=not rgb,
    )


def _side(cfg: Config) -> int:
    """Side of a classifier's test pictures, pixels; 224 where the config does not say it."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline', [])
    found = [step['crop_size'] for step in steps if step.get('type') == 'CenterCrop']
    return found[-1] if found and isinstance(found[-1], int) else 224
