"""Prepare runs of OpenMMLab: read and check configs, find checkpoints, set launcher and resume."""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from ...specs import SPECS, out_channels
from ...utils import optional
from ...utils.checkpoint_io import read

optional.require('mmengine')

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.utils import is_installed


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of an import hook
        return False


# Packages whose forks have another distribution name, such as onedl-mmsegmentation, which MMEngine
# would not find. A name of a module does as well.
FORKS = [
    module
    for module, package in MODULE2PACKAGE.items()
    if _is_there(module) and not is_installed(package)
]
MODULE2PACKAGE.update({module: module for module in FORKS})

# By mode: the keys that a Runner needs, and the loaders that it builds where the config has them.
_REQUIRED = {
    'train': (
        ('model', 'train_dataloader', 'optim_wrapper'),
        ('train_dataloader', 'val_dataloader'),
    ),
    'test': (('model', 'test_dataloader'), ('test_dataloader',)),
}


def read_config(path: str | os.PathLike) -> Config:
    """Read a config file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It cannot be read.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no config at {os.fspath(path)!r}')
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is code and raises anything
        raise ValueError(f'cannot read config {os.fspath(path)!r}: {_reason(error)}') from error


def _reason(error: Exception) -> str:
    """The root cause and, where mmengine wrapped it, mmengine's advice."""
    root, lines = error, str(error).splitlines() or ['']
    if error.__cause__:
        root = error.__cause__
        while root.__cause__ or root.__context__:
            root = root.__cause__ or root.__context__
    if root is error:
        return f'{type(error).__name__}: {lines[0]}'
    return f'{type(root).__name__}: {root}. {lines[-1].strip()}'


def check_checkpoint(source: str, resume: bool = False) -> None:
    """Refuse a checkpoint file whose loading would run code; addresses are left to mmengine.

    Args:
        source: File, folder of a file per process, or address.
        resume: A run will resume from it, not only start with its weights.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of tensors and plain values,
            or without the state of a run.
    """
    if '://' in source or (resume and os.path.isdir(source)):
        return
    meta = read(source).get('meta')
    if resume and not (isinstance(meta, Mapping) and {'epoch', 'iter'} <= meta.keys()):
        raise ValueError(
            f'{source!r} holds weights but no state of a run to resume; start with them by '
            f'--cfg-options load_from={source}'
        )


def allow_arrays() -> None:
    """Let torch load numpy arrays of all numeric types from checkpoints, which run no code.

    MMPose and MMSegmentation save such arrays with their data's colours and sigmas; MMEngine allows
    three types only.
    """
    kinds = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['Float']}
    torch.serialization.add_safe_globals([bytes, type(np.dtype(bool)), *kinds])


def load_run(
    config: str | os.PathLike, work_dir: Path, options: dict | None = None, mode: str = 'train'
) -> Config:
    """Read a config with changes and check that a Runner can use it.

    Args:
        config: File.
        work_dir: Folder of the run, if neither the config nor ``options`` name one.
        options: Changes, such as ``{'train_cfg.max_epochs': 3}``.
        mode: ``'train'`` or ``'test'``; data of the other mode may be missing.

    Raises:
        FileNotFoundError: No config, or no folder with its data.
        ValueError: The config cannot be read, is incomplete, or its neck does not fit.
    """
    cfg = read_config(config)
    cfg.merge_from_dict(options or {})
    cfg.work_dir = cfg.get('work_dir') or str(work_dir)
    needed, loaders = _REQUIRED[mode]
    for part in needed:
        if part not in cfg:
            raise ValueError(f'{config} has no {part}; it is part of a config, inherit from it')
    _check_neck(cfg.model)
    for loader in loaders:
        check_data(cfg, loader)
    return cfg


def _check_neck(model: dict) -> None:
    """Raise where the channels of a neck differ from those of the Ghost backbone."""
    backbone, neck = model.get('backbone') or {}, model.get('neck') or {}
    wanted = neck.get('in_channels') if isinstance(neck, dict) else None
    scope, _, name = str(backbone.get('type')).rpartition('.')
    if scope != 'ghost_plugin' or name not in SPECS or not isinstance(wanted, list | tuple):
        return
    size = {key: backbone[key] for key in ('out_indices', 'width', 'arch') if key in backbone}
    given = out_channels(name, **size)
    if list(wanted) not in (given, given[::-1]):  # YOLOV3Neck begins with the deepest
        raise ValueError(
            f'the neck {neck.get("type")} wants {wanted} channels and the backbone gives {given}; '
            'change out_indices, or set in_channels to ghost_plugin.out_channels(...)'
        )


def check_data(cfg: Config, loader: str) -> None:
    """Check that the folder of a config's data exists.

    Args:
        cfg: Config.
        loader: Such as ``'train_dataloader'``.

    Raises:
        FileNotFoundError: It is missing or empty.
    """
    root = (cfg.get(loader) or {}).get('dataset', {}).get('data_root')
    if root and '://' not in root and (not os.path.isdir(root) or not os.listdir(root)):
        raise FileNotFoundError(
            f'{loader} reads data from {root!r}, which is missing or empty; '
            'the scripts in tools/data make such folders'
        )


def last_checkpoint(work_dir: Path) -> Path:
    """Find the newest complete checkpoint of a run, even if the run was killed while saving.

    Raises:
        FileNotFoundError: The run saved no checkpoint.
    """
    pointer = work_dir / 'last_checkpoint'
    named = Path(pointer.read_text().strip() or '-') if pointer.is_file() else work_dir / '-'
    if named.is_dir() or zipfile.is_zipfile(named):  # a folder holds one file per process
        return named
    whole = [path for path in work_dir.glob('*_*.pth') if _step(path) and zipfile.is_zipfile(path)]
    if not whole:
        raise FileNotFoundError(f'no checkpoint in {work_dir}; train first')
    return max(whole, key=_step)


def _step(path: Path) -> int:
    """Epoch or iteration in the name of a checkpoint, 0 for other names."""
    found = re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem)
    return int(found[1]) if found else 0


# Launcher -> variable that it sets in each process, and its command.
_LAUNCHERS = {
    'pytorch': ('RANK', 'torchrun'),
    'slurm': ('SLURM_PROCID', 'srun'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun'),
}


def launch(cfg: Config, launcher: str) -> None:
    """Set the launcher of a run; processes without GPUs use gloo, where MMEngine needs a GPU.

    Args:
        cfg: Config of the run; modified.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ValueError: The launcher did not start this process.
    """
    variable, command = _LAUNCHERS.get(launcher, ('', ''))
    if variable and variable not in os.environ and not distributed.is_initialized():
        raise ValueError(
            f'--launcher {launcher} is for processes that {command} starts, and {variable} is not '
            f'set; start with {command}, or leave --launcher out'
        )
    cfg.launcher = launcher
    if launcher != 'pytorch' or get_device() != 'cpu':
        return
    if not distributed.is_initialized():
        distributed.init_process_group('gloo')
    unused = cfg.get('find_unused_parameters', False)
    wrapper = {'broadcast_buffers': False, 'find_unused_parameters': unused}
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}


def close_distributed() -> None:
    """Wait for the other processes and close the group; without it gloo may abort one of them."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def set_resume(cfg: Config, source: str) -> None:
    """Resume a run from a checkpoint.

    Args:
        cfg: Config of the run; modified.
        source: Checkpoint, or ``'auto'`` for the newest one of the run, if there is any.
    """
    if source == 'auto':
        try:
            source = str(last_checkpoint(Path(cfg.work_dir)))
        except FileNotFoundError:
            return  # the run starts anew
    cfg.resume, cfg.load_from = True, source


def explain_error(error: Exception) -> Exception:
    """Replace torch's error about a label out of range by one about data and config."""
    label = re.search(r'Target (-?\d+) is out of bounds', str(error))
    if not label:
        return error
    return ValueError(
        f'the data has a label {label[1]} and the model fewer classes, which count from 0; change '
        'num_classes of its head'
    )


def scale_learning_rate(cfg: Config) -> None:
    """Let MMEngine scale the learning rate to the real batch size.

    Raises:
        ValueError: The config does not say which batch size its learning rate is for.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            'the config does not say which batch size its learning rate is for; give '
            '--cfg-options auto_scale_lr.base_batch_size=N, or leave --auto-scale-lr out'
        )
    cfg.auto_scale_lr.enable = True


def use_atomic_checkpoints(cfg: Config) -> None:
    """Replace MMEngine's checkpoint hook, where a config has it, by one with atomic writes."""
    hook = cfg.setdefault('default_hooks', {}).setdefault('checkpoint', {'type': 'CheckpointHook'})
    kind = hook.get('type') if hook else None
    # Python-style configs hold the class, and dumped ones its name with any of its modules.
    if (HOOKS.get(kind) if isinstance(kind, str) else kind) is CheckpointHook:
        hook['type'] = 'ghost_plugin.AtomicCheckpointHook'


def default_scope_of(cfg: Config) -> AbstractContextManager[None]:
    """Use the default scope of a config for a while."""
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')


def build_model(
    config: str | os.PathLike, checkpoint: str | os.PathLike | None = None
) -> nn.Module:
    """Build the model of a config in eval mode.

    Args:
        config: Config file.
        checkpoint: Weights to load; random weights without it.
    """
    cfg = Config.fromfile(config)
    with default_scope_of(cfg):
        model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_checkpoint(model, os.fspath(checkpoint), map_location='cpu', strict=True)
    model.eval()
    return model


def read_scalars(work_dir: Path) -> list[dict[str, Any]]:
    """Read all values that a run logged, including its resumed parts, in order."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
