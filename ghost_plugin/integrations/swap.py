"""Put another backbone into a config of MMDetection or MMPretrain.

The neck's and the head's channels come from running the new backbone once, not from a table. The
result inherits the original config and holds the difference only.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _optional, specs
from .runs import read_config

_optional.require('mmengine', 'mmcv')

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

_PROBE = 128  # side of the picture that both backbones are shown, pixels


def load_config(source: str | os.PathLike) -> Config:
    """A config file, or ``mmdet::...`` / ``mmpretrain::...`` out of an installed package.

    Raises:
        FileNotFoundError: No such config. ImportError: The package is not installed.
        ValueError: It cannot be read.
    """
    return read_config(resolve(os.fspath(source)))


def resolve(source: str) -> str:
    """The path of a config, with ``package::`` looked up among the installed packages."""
    if '::' not in source:
        return source
    try:
        return Config._get_cfg_path(source, '')[0]
    except (ValueError, OSError, AssertionError) as error:
        raise FileNotFoundError(
            f'no config {source!r} in an installed package; a name such as '
            "'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py' is wanted"
        ) from error


def build_backbone(cfg: dict, scope: str) -> nn.Module:
    """A backbone without weights in eval mode, as the framework of ``scope`` would build it."""
    init_default_scope(scope)
    bare = {key: value for key, value in cfg.items() if key not in ('init_cfg', 'pretrained')}
    try:
        backbone = MODELS.build(bare)
        backbone.eval()  # on its own line: many of OpenMMLab's return None here
        return backbone
    except KeyError as error:
        raise ValueError(f'cannot build backbone {cfg.get("type")!r}: {error}') from error


def features(backbone: nn.Module, channels: int = 3) -> list[tuple[int, int]]:
    """Channels and stride in pixels of every map that a backbone returns."""
    with torch.no_grad():
        maps = backbone(torch.zeros(1, channels, _PROBE, _PROBE))
    maps = maps if isinstance(maps, tuple | list) else (maps,)
    return [(one.shape[1], round(_PROBE / one.shape[-1])) for one in maps]


def swap_backbone(cfg: Config, backbone: str, **arguments: Any) -> dict[str, Any]:
    """The change that puts ``backbone`` into a config.

    Args:
        cfg: Config of a detector with an FPN-like neck, or of a classifier.
        backbone: Registered type, such as ``'ghost_plugin.GhostNet'``.
        arguments: Of the backbone; without ``out_indices`` the levels are those whose strides the
            old backbone has, and the final conv for a classifier.

    Returns:
        The ``model`` part of a config that inherits the original.

    Raises:
        ValueError: No backbone in the config, strides that the new one lacks, or a neck that wants
            another number of levels.
    """
    model = cfg.get('model')
    if not model or 'backbone' not in model:
        raise ValueError('this config has no model.backbone to swap; give the config of a model')
    classifier = 'bbox_head' not in model and 'roi_head' not in model and 'head' in model
    scope = cfg.get('default_scope') or ('mmpretrain' if classifier else 'mmdet')
    new = {'type': backbone, **arguments}
    if backbone.startswith('ghost_plugin.'):
        specs.find(backbone)
        new.setdefault('out_indices', _levels(model, scope, classifier))
    maps = features(build_backbone(new, scope), arguments.get('in_channels', 3))
    change = {'backbone': {'_delete_': True, **new}}
    fit = _fit_classifier if classifier else _fit_neck
    return {**change, **fit(model, [channels for channels, _ in maps])}


def _levels(model: ConfigDict, scope: str, classifier: bool) -> tuple[int, ...]:
    """Levels of ours with the strides of the old backbone's maps."""
    if classifier:
        return (specs.FINAL_LEVEL,)
    strides = [stride for _, stride in features(build_backbone(model['backbone'], scope))]
    known = [2 ** (level + 1) for level in range(specs.FINAL_LEVEL)]
    if any(stride not in known for stride in strides) or len(set(strides)) < len(strides):
        raise ValueError(
            f'the old backbone gives maps of strides {strides}, ours has one each of {known}; '
            'choose levels with --out-indices'
        )
    return tuple(known.index(stride) for stride in strides)


def _fit_neck(model: ConfigDict, channels: list[int]) -> dict[str, Any]:
    """The neck's new input channels."""
    neck = model.get('neck')
    if not isinstance(neck, dict) or not isinstance(neck.get('in_channels'), list | tuple):
        raise ValueError(
            'this version fits necks with a list of in_channels (FPN and its like); '
            f'the config has {"none" if not neck else neck.get("type")}'
        )
    wanted = len(neck['in_channels'])
    if wanted != len(channels):
        raise ValueError(
            f'the neck {neck["type"]} wants {wanted} levels and the backbone gives '
            f'{len(channels)} (channels {channels}); give {wanted} with --out-indices'
        )
    return {'neck': {'in_channels': channels}}


def _fit_classifier(model: ConfigDict, channels: list[int]) -> dict[str, Any]:
    """The head's new input channels."""
    if 'in_channels' not in model['head']:
        raise ValueError(f'the head {model["head"].get("type")} has no in_channels to fit')
    return {'head': {'in_channels': channels[-1]}}


def write_config(
    out: str | os.PathLike, bases: Sequence[str], change: dict[str, Any], note: str = ''
) -> Config:
    """Write a config that inherits ``bases`` and changes ``model``; it replaces no file by half.

    Args:
        out: File to write; folders are made.
        bases: Config files or ``package::`` names, none of which may share a key.
        change: Top-level keys and values that differ.
        note: First line, a comment.

    Returns:
        The merged config, read back from what was written.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    names = [base if '::' in base else _relative(base, out.parent) for base in bases]
    lines = [f'# {note}'] if note else []
    lines.append(f'_base_ = {names if len(names) > 1 else names[0]!r}')
    lines.append(Config(change).pretty_text)
    partial = out.with_name(f'{out.stem}_partial.py')
    try:
        partial.write_text('\n'.join(lines))
        Config.fromfile(partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return Config.fromfile(out)


def _relative(path: str, start: Path) -> str:
    return Path(os.path.relpath(Path(path).resolve(), start.resolve())).as_posix()
