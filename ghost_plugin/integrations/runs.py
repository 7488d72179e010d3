"""Runs of OpenMMLab: their config, what they left behind, pictures of them."""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from .. import _optional
from ..specs import SPECS, out_channels
from ..weights import read

_optional.require('mmengine')

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint


def read_config(path: str | os.PathLike) -> Config:
    """A config file.

    Raises:
        FileNotFoundError: No such file. ValueError: It cannot be read.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no config at {os.fspath(path)!r}')
    try:
        return Config.fromfile(path)
    except Exception as error:  # it is a program, and can go wrong in any way
        reason = (str(error).splitlines() or [''])[0]
        raise ValueError(
            f'cannot read config {os.fspath(path)!r}: {type(error).__name__}: {reason}'
        ) from error


def check_checkpoint(source: str) -> None:
    """Refuse a file that mmengine would have to run code of; an address is left to mmengine.

    Raises:
        FileNotFoundError: No such file. ValueError: Not a checkpoint of tensors and plain values.
    """
    if '://' not in source:
        read(source)


def load_run(config: str | os.PathLike, work_dir: Path, options: dict | None = None) -> Config:
    """A config file with changes, ready for a Runner that writes into ``work_dir``.

    Raises:
        FileNotFoundError: No config, or no folder where it looks for its data.
        ValueError: A config that cannot be read, of only a part, or whose neck does not fit.
    """
    cfg = read_config(config)
    cfg.merge_from_dict(options or {})
    cfg.work_dir = str(work_dir)
    for part in ('model', 'train_dataloader', 'test_dataloader'):
        if part not in cfg:
            raise ValueError(f'{config} has no {part}; it is part of a config, inherit from it')
    _check_neck(cfg.model)
    _check_data(cfg)
    return cfg


def _check_neck(model: dict) -> None:
    """Raise when a neck wants other maps than the backbone of ours in front of it gives."""
    backbone, neck = model.get('backbone') or {}, model.get('neck') or {}
    wanted = neck.get('in_channels') if isinstance(neck, dict) else None
    scope, _, name = str(backbone.get('type')).rpartition('.')
    if scope != 'ghost_plugin' or name not in SPECS or not isinstance(wanted, list | tuple):
        return
    size = {key: backbone[key] for key in ('out_indices', 'width', 'arch') if key in backbone}
    given = out_channels(name, **size)
    if list(wanted) != given:
        raise ValueError(
            f'the neck {neck.get("type")} wants maps of {wanted} channels and the backbone gives '
            f'{given}; change out_indices, or ask ghost_plugin.out_channels for in_channels'
        )


def _check_data(cfg: Config) -> None:
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        root = (cfg.get(part) or {}).get('dataset', {}).get('data_root')
        if root and '://' not in root and (not os.path.isdir(root) or not os.listdir(root)):
            raise FileNotFoundError(
                f'{part} looks for data in {root!r}, which is missing or empty; '
                'tools/make_digits.py, voc_to_coco.py and prepare_folder.py make such folders'
            )


def last_checkpoint(work_dir: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        FileNotFoundError: The run saved none.
    """
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file():
        raise FileNotFoundError(f'no checkpoint in {work_dir}; train first')
    return Path(pointer.read_text().strip())


def build_model(
    config: str | os.PathLike, checkpoint: str | os.PathLike | None = None
) -> nn.Module:
    """The model of a config in eval mode, with the weights of a checkpoint."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_checkpoint(model, os.fspath(checkpoint), map_location='cpu', strict=True)
    model.eval()
    return model


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    """Everything a run logged, over all its resumed parts, in order."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
