"""Build a model from an OpenMMLab config, with its preprocessing and the form of its input."""

from collections.abc import Callable, Mapping
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
from .backbone_swap.config_tree import listed
from .backbone_swap.kinds import ModelKind, kind_of_class
from .backbone_swap.probing import describe_error

_IMAGE_SIZES = (224, 256)  # pixels, where the config names none; the second if the first fails
_HEADS = ('head', 'bbox_head', 'decode_head', 'auxiliary_head')
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
        _set_classes(model, num_classes, source)
    try:
        built = MODELS.build(model)
        size = image_size(built, model)
        preprocessing = _preprocessing(model.get('data_preprocessor') or {}, cfg, size)
        mode = raw_output_mode(built, preprocessing.size)
        return built, preprocessing, partial(model_input, built, mode=mode)
    except Exception as error:  # constructors of other packages raise anything
        raise ValueError(f'cannot build {source}: {describe_error(error)}') from error


def _set_classes(model: Mapping, number: int, source: str) -> None:
    """Set the classes of all heads of a classifier, one-stage detector or segmentor, in place."""
    found = [model[key] for key in _HEADS if model.get(key)]
    heads = [head for one in found for head in listed(one)]
    if not heads or not all(isinstance(head, dict) and 'num_classes' in head for head in heads):
        raise ValueError(f'{source} has no head with num_classes; change it in the config')
    for head in heads:
        head['num_classes'] = number


def image_size(model: nn.Module, cfg: Mapping) -> tuple[int, int]:
    """Height and width (pixels) of the images that a model is planned with.

    Args:
        model: The model.
        cfg: Its config; that of a pose estimator names the size.
    """
    inner = cfg.get('model') or cfg.get('student') or cfg  # of Converted and Distilled
    kind = _kind(model)
    if kind is None or kind.samples is None:
        return _IMAGE_SIZES[0], _IMAGE_SIZES[0]
    first, second = (kind.image_shape(inner, size) for size in _IMAGE_SIZES)
    # Levels of stride 64 want a multiple of it; a model may also run in no size in this mode.
    return second if not _runs(model, first) and _runs(model, second) else first


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
    """Form the input with which a model returns raw outputs, as the tools of its package do.

    All but classifiers get data samples with image sizes besides.

    Args:
        model: Model of MMPretrain, MMDetection or another package on MMEngine.
        images: (N, 3, H, W).
        mode: Mode of the model, as :func:`raw_output_mode` finds it.
    """
    kind = _kind(model)
    if kind is None or kind.samples is None:
        return images
    samples = kind.samples(len(images), tuple(images.shape[-2:]))
    return {'inputs': images, 'data_samples': samples, 'mode': mode}


def raw_output_mode(model: nn.Module, size: tuple[int, int]) -> str:
    """Return ``'tensor'``, or ``'predict'`` for models whose mode ``'tensor'`` fails.

    Args:
        model: As for :func:`model_input`.
        size: Height and width of the image, pixels.
    """
    # Some heads need labels or proposals.
    kind = _kind(model)
    plain = kind is None or kind.samples is None
    return 'tensor' if plain or _runs(model, size) else 'predict'


def _runs(model: nn.Module, size: tuple[int, int]) -> bool:
    """Say if a model runs on an image in the mode ``'tensor'``."""
    try:
        with eval_mode(model):
            call_model(model, model_input(model, torch.zeros(1, 3, *size)))
    except Exception:  # models of other packages raise anything
        return False
    return True


def _kind(model: nn.Module) -> ModelKind | None:
    try:
        return kind_of_class(type(model))
    except ValueError:  # of another kind
        return None


def _preprocessing(preprocessor: Any, cfg: Config, default: tuple[int, int]) -> Preprocessing:
    """Convert mean and std of values within 0..255, in the channel order of the network.

    Args:
        preprocessor: Config of the data preprocessor.
        cfg: The whole config.
        default: Height and width where the config does not crop, pixels.
    """
    mean, std = (preprocessor.get(key) for key in ('mean', 'std'))
    rgb = preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    steps = loader.get('dataset', {}).get('pipeline', [])
    crops = [step['crop_size'] for step in steps if step.get('type') == 'CenterCrop']
    return Preprocessing(
        (crops[-1], crops[-1]) if crops and isinstance(crops[-1], int) else default,
        tuple(value / 255 for value in mean or (0, 0, 0)),
        tuple(value / 255 for value in std or (1, 1, 1)),
        bgr=not rgb,
    )
