"""Calibration batches from the data of a config, loaded and preprocessed as its own tools do it."""

import copy
import os
from typing import Any

from torch import nn

from ...utils import optional
from .backbone_swap import load_config
from .runner_setup import check_data, default_scope_of

optional.require('mmengine', 'mmcv')

from mmengine.runner import Runner

LOADERS = ('train', 'val', 'test')


def config_batches(
    source: str | os.PathLike,
    model: nn.Module,
    number: int,
    loader: str = 'val',
    mode: str = 'tensor',
) -> list[dict[str, Any]]:
    """Load batches of a config's own data; a model is called with each as keyword arguments.

    Pose estimators get their crops of persons, for instance, and detectors their padded images.

    Args:
        source: Config file, or ``mmdet::...`` of an installed package.
        model: Model of the config; its data preprocessor makes the batches.
        number: Images at least; fewer where there are no more.
        loader: ``'train'``, ``'val'`` or ``'test'``; ``'train'`` has its augmentations.
        mode: Mode that the model is called in, as ``model_from_config.raw_output_mode`` finds it.

    Raises:
        FileNotFoundError: No config, or no folder with its data.
        ValueError: The config has no such loader.
    """
    cfg, name = load_config(source), f'{loader}_dataloader'
    if not cfg.get(name):
        have = [one for one in LOADERS if cfg.get(f'{one}_dataloader')]
        raise ValueError(f'{os.fspath(source)} has no {name}; it has those of {have}')
    check_data(cfg, name)
    options = {**copy.deepcopy(cfg[name].to_dict()), 'num_workers': 0, 'persistent_workers': False}
    batches: list[dict[str, Any]] = []
    with default_scope_of(cfg):
        for data in Runner.build_dataloader(options, seed=0):
            batches.append({**model.data_preprocessor(data, loader == 'train'), 'mode': mode})
            number -= len(batches[-1]['inputs'])
            if number <= 0:
                break
    return batches
