"""Build a model from an OpenMMLab config, with its preprocessing and the form of its input."""

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
from .backbone_swap.probing import describe_error

InputFn = Callable[[torch.Tensor], Any]


def build(source: str, num_classes: int | None = None) -> tuple[nn.Module, Preprocessing, InputFn]:
    """Build the model of a config without its weights.

    Args:
        source: File, or ``mmdet::...`` / ``mmpretrain::...`` of an installed package.
        num_classes: Outputs of the head.

    Returns:
        The model, its preprocessing, and a function from images (N, 3, H, W) to the model's input.

    Raises:
        FileNotFoundError: No such config.
        ValueError: No model in it, or it cannot be built.
    """
    try:
        cfg = load_config(source)
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # a config is code
        hint = '' if '::' in source else f'; a function that builds a model is {source}:FUNCTION'
        raise ValueError(f'cannot read {source}: {describe_error(error)}{hint}') from error
    if 'model' not in cfg:
        raise ValueError(f'{source} has no model; give the config of a model or FILE.py:FUNCTION')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = cfg.model
    if cfg.get('data_preprocessor') and not model.get('data_preprocessor'):
        model.data_preprocessor = cfg.data_preprocessor  # as the Runner does it
    if num_classes is not None:
        head = next((model[key] for key in ('head', 'bbox_head') if key in model), {})
        if not isinstance(head, dict) or 'num_classes' not in head:
            raise ValueError(f'{source} has no head with num_classes; change it in the config')
        head['num_classes'] = num_classes
    try:
        built = MODELS.build(model)
        preprocessing = _preprocessing(model.get('data_preprocessor') or {}, cfg)
        mode = raw_output_mode(built, preprocessing.size)
        return built, preprocessing, partial(model_input, built, mode=mode)
    except Exception as error:  # constructors of other packages raise anything
        raise ValueError(f'cannot build {source}: {describe_error(error)}') from error


def initialize(model: nn.Module) -> nn.Module:
    """Initialise a model in place as the Runner does, without reading checkpoints.

    Some heads work on such weights only, such as Sparse R-CNN's proposals.
    """
    for part in model.modules():
        cfg = getattr(part, 'init_cfg', None)
        if isinstance(cfg, list):
            part.init_cfg = [each for each in cfg if each['type'] != 'Pretrained']
        elif cfg and cfg['type'] == 'Pretrained':
            part.init_cfg = None
    if hasattr(model, 'init_weights'):
        model._dump_init_info = lambda *names: None  # it logs a line for each parameter
        model.init_weights()
    return model


def model_input(model: nn.Module, images: torch.Tensor, mode: str = 'tensor') -> Any:
    """Form the input with which a model returns raw outputs; detectors need image sizes too.

    Args:
        model: Model of MMPretrain, MMDetection or another package on MMEngine.
        images: (N, 3, H, W).
        mode: Mode of a detector, as :func:`raw_output_mode` finds it.
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
def raw_output_mode(model: nn.Module, size: tuple[int, int]) -> str:
    """Return ``'tensor'``, or ``'predict'`` for detectors whose mode ``'tensor'`` fails.

    Args:
        model: As for :func:`model_input`.
        size: Height and width of the image, pixels.
    """
    if not _is_detector(model):
        return 'tensor'
    try:
        with eval_mode(model):
            call_model(model, model_input(model, torch.zeros(1, 3, *size)))
    except Exception:  # some heads need labels or proposals
        return 'predict'
    return 'tensor'


def _is_detector(model: nn.Module) -> bool:
    return type(model).__module__.startswith('mmdet.')


def _preprocessing(preprocessor: Any, cfg: Config) -> Preprocessing:
    """Convert mean and std of values within 0..255, in the channel order of the network."""
    mean, std = (preprocessor.get(key) for key in ('mean', 'std'))
    rgb = preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline', [])
    crops = [step['crop_size'] for step in steps if step.get('type') == 'CenterCrop']
    size = crops[-1] if crops and isinstance(crops[-1], int) else 224
    return Preprocessing(
        (size, size),
        tuple(value / 255 for value in mean or (0, 0, 0)),
        tuple(value / 255 for value in std or (1, 1, 1)),
        bgr=not rgb,
    )
