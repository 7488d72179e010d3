"""Conversion in OpenMMLab's configs: ``dict(type='ghost_plugin.Converted', model=..., plan=...)``.

The result is the inner model itself with Ghost convs inside; its class, checkpoints and behaviour
stay the same. The conversion happens when the model is built, before the Runner makes the
optimizer, initialises and loads. Dense checkpoints are converted while they load, by
``load_from``, ``init_cfg`` or ``resume``.
"""

import copy
import os
from functools import partial
from typing import Any

import torch
from torch import nn

from ...conversion import ConversionPlan
from ...conversion.api import plan
from ...registry import MODELS
from ...utils import optional
from ...utils.modules import call_model, eval_mode

optional.require('mmengine', 'mmcv')

from mmengine.logging import print_log

from .initialization import init_weights
from .model_from_config import image_size, initialize, model_input, raw_output_mode


@MODELS.register_module(name='Converted', force=True)
def converted(
    model: dict,
    plan: str | os.PathLike | dict | None = None,
    size: int | tuple[int, int] | None = None,
    data_preprocessor: dict | None = None,
) -> nn.Module:
    """Build a model and convert it.

    Args:
        model: Config of any model of MMPretrain, MMDetection or another package on MMEngine.
        plan: File of a plan, which may come from calibration images; or arguments of
            :func:`ghost_plugin.plan`, such as ``dict(macs=0.6)``, for a plan without images.
        size: Size of the image that such a plan is made for, or height and width, pixels;
            without it that of the config of a pose estimator, 224 otherwise.
        data_preprocessor: Data preprocessor of the model, where it has none of its own.

    Raises:
        ValueError: The plan belongs to another model; a budget that cannot be met.
    """
    defaults = {'data_preprocessor': data_preprocessor} if data_preprocessor else {}
    inner = MODELS.build({**defaults, **model})
    size = image_size(inner, model) if size is None else size
    made = _plan(inner, plan, (size, size) if isinstance(size, int) else tuple(size))
    print_log(f'{type(inner).__name__}, converted:\n{made.report()}', logger='current')
    model = made.apply(inner, inherit=False, inplace=True, optimizers=[])
    if hasattr(model, 'init_weights'):
        model.init_weights = partial(init_weights, model)  # a subclass would change the class
    return model


def _plan(model: nn.Module, given: Any, size: tuple[int, int]) -> ConversionPlan:
    if isinstance(given, str | os.PathLike):
        return ConversionPlan.load(given)
    example = model_input(model, torch.randn(1, 3, *size), raw_output_mode(model, size))
    try:
        with eval_mode(model):
            call_model(model, example)
    except Exception:  # some heads run on initialised weights only, and raise anything
        model = initialize(copy.deepcopy(model))
    return plan(model, example, **(given or {}))
