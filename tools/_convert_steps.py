"""What several commands of ``convert.py`` begin with."""

import argparse
from typing import Any

import torch
from _convert_options import BUDGETS

import ghost_plugin as gp
from ghost_plugin.cli import model_loading
from ghost_plugin.cli.terminal import Meter
from ghost_plugin.training import evaluation
from ghost_plugin.training.image_folder import ImageFolder
from ghost_plugin.training.loader import Calibration, ImageLoader


def load(args: argparse.Namespace) -> model_loading.LoadedModel:
    """The model of the command line on its device, and the look of its pictures."""
    torch.manual_seed(args.seed)
    source = model_loading.load(args.model, args.num_classes, args.checkpoint, args.pretrained)
    source = source.adjusted(args.size, args.mean, args.std)
    source.model.to(args.device)
    evaluation.costs(source.model, source.example())  # says so where it does not run at all
    return source


def calibration(
    args: argparse.Namespace, source: model_loading.LoadedModel, meter: Meter
) -> dict[str, Any]:
    """The pictures that a conversion may see, as an argument, if there are any."""
    if args.data is None:
        return {}
    images = ImageFolder(args.data, args.split).some(args.pictures, args.seed)
    loader = ImageLoader(images, source.look, device=args.device)
    return {'calibration': Calibration(loader, wrap=source.wrap, progress=meter)}


def planned(
    args: argparse.Namespace, source: model_loading.LoadedModel, meter: Meter
) -> gp.ConversionPlan:
    """A plan by what the command line chose; a budget is scored on the pictures, if any."""
    names = ('ratio', 'dw_size', 'cheap', 'include', 'exclude', *BUDGETS, 'seed')
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if any(name in options for name in BUDGETS):
        options |= calibration(args, source, meter)
    if args.latency_by is not None:
        options['ready'] = gp.deploy.ready(args.latency_by)
    options |= {'keep_first': not args.no_keep_first, 'keep_last': not args.no_keep_last}
    return gp.plan(source.model, source.example(), **options)
