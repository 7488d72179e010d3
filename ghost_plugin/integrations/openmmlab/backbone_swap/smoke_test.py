"""Both models of a swap built, one step of training and one prediction of the new one, costs."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .... import profiling
from ....utils import optional
from ..model_from_config import called
from .config_tree import find_part
from .dummy_batches import image_channels
from .foreign import quiet, reason
from .kinds import find_kind, kind_of_class

optional.require('mmengine', 'mmcv')

from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope

# What a Runner tells losses that change while a model trains.
_PROGRESS = {'iter': 0, 'epoch': 0, 'max_iters': 1000, 'max_epochs': 12}
_NORMS_OF_PROCESSES = ('SyncBN', 'MMSyncBN', 'naiveSyncBN')  # they train on GPUs only
_REGIONS = 32  # that a head learns from in one trial step


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of one part of a model, such as its neck."""

    part: str
    params: int
    macs: int


def build(cfg: Config) -> tuple[nn.Module, Mapping]:
    """The model of a config without pretrained weights, and its config.

    Whatever hinders a small trial goes: norms over several processes, fixed sizes of padded
    images, augmentations that make small images large, hundreds of sampled regions.

    Raises:
        ValueError: It cannot be built.
    """
    model = copy.deepcopy(cfg.model)
    _, part = find_part(model)
    kind = find_kind(part, cfg.get('default_scope'))
    if cfg.get('data_preprocessor') and not part.get('data_preprocessor'):
        part.data_preprocessor = copy.deepcopy(cfg.data_preprocessor)  # as the Runner does it
    if kind.name == 'detector' and part is not model:
        part.setdefault(
            'data_preprocessor', {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32}
        )
    look = part.get('data_preprocessor') or {}
    if kind.name != 'classifier':
        look.pop('batch_augments', None)
    if look.get('size'):
        look.update(size=None, size_divisor=32)
    _prepare_trial(part)
    try:
        with quiet():
            init_default_scope(cfg.get('default_scope') or kind.scope)
            built = MODELS.build(part)
            built.init_weights()
        return built, part
    except Exception as error:  # foreign constructors raise whatever they like
        raise ValueError(f'cannot build the model: {reason(error)}') from error


def _prepare_trial(node: Any) -> None:
    """Make a config light in place: no weights to load, no norms over processes, few regions."""
    if isinstance(node, Mapping):
        init = node.get('init_cfg')
        if isinstance(init, Mapping) and init.get('type') == 'Pretrained':
            node['init_cfg'] = None
        if node.get('pretrained'):
            node['pretrained'] = None if isinstance(node['pretrained'], str) else False
        if node.get('type') in _NORMS_OF_PROCESSES:
            node['type'] = 'BN'
        sampler = node.get('sampler')
        if isinstance(sampler, Mapping) and isinstance(sampler.get('num'), int):
            sampler['num'] = min(sampler['num'], _REGIONS)
        for value in node.values():
            _prepare_trial(value)
    elif isinstance(node, list | tuple):
        for item in node:
            _prepare_trial(item)


def exercise(model: nn.Module, part: Mapping, side: int = 128) -> float:
    """One step of training and one prediction on made-up images.

    Args:
        model, part: As :func:`build` returns them.
        side: Of the images, pixels.

    Returns:
        The loss.

    Raises:
        ValueError: The step or the prediction fails, or gives losses or gradients that are not
            finite or none for the backbone.
    """
    batch = _batch(model, part, side)
    loss = _train(model, batch)
    try:
        _predict(model, batch)
    except Exception as error:  # as above
        raise ValueError(f'the model does not predict: {reason(error)}') from error
    return loss


def _batch(model: nn.Module, part: Mapping, size: int) -> dict[str, Any]:
    try:
        return kind_of_class(type(model)).batch(part, size)
    except Exception as error:  # as above
        raise ValueError(f'no batch can be made for the model: {reason(error)}') from error


def _train(model: nn.Module, batch: dict[str, Any]) -> float:
    """The loss of one training step, whose gradients stay in the model.

    Raises:
        ValueError: The step fails, or its loss or gradients are not finite.
    """
    model.train()
    model.zero_grad()
    MessageHub.get_current_instance().update_info_dict(_PROGRESS)
    try:
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        if getattr(model, 'head', True) is None:  # a backbone to take features from
            loss = sum(one.square().mean() for one in model(**data))
        else:
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
    except Exception as error:  # as above
        raise ValueError(f'the model does not run: {reason(error)}') from error
    if not loss.isfinite():
        raise ValueError('the loss of a training step is not finite')
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    broken = [name for name, gradient in found.items() if not gradient.isfinite().all()]
    if broken:
        raise ValueError(f'gradients that are not finite: {broken[:3]}')
    if not any(name.startswith('backbone') for name in found):
        raise ValueError('no gradient reaches the backbone; freeze fewer stages')
    return loss.item()


def verify(old: Config, new: Config) -> list[str]:
    """Build the swapped model and train it one step on small made-up images.

    Args:
        old, new: The config before and after the swap.

    Returns:
        Remarks: parameters of the backbone that got no gradient, or that nothing could be
        verified because the original fails in the same way.

    Raises:
        ValueError: The new model fails, and the original does not or in another way.
    """
    unused, failure = _first_step(new)
    if failure:
        before = _first_step(old)[1]
        if before != failure:
            raise ValueError(f'{failure}{_about_original(failure, before)}')
        return [f'NOT VERIFIED by a training step: {failure}{_about_original(failure, before)}']
    if unused:
        return [
            f'{len(unused)} parameters of the backbone get no gradient, such as {unused[0]}, as '
            'nothing reads their level; DistributedDataParallel needs find_unused_parameters=True'
        ]
    return []


def _first_step(cfg: Config) -> tuple[list[str], str | None]:
    """Names of the backbone's parameters without gradient, and what went wrong, if anything."""
    failure = None
    try:
        model, part = build(cfg)
        for size in kind_of_class(type(model)).trial_sizes:
            try:
                _train(model, _batch(model, part, size))
            except ValueError as error:
                failure = str(error)
                continue
            return [
                name
                for name, parameter in model.named_parameters()
                if name.startswith('backbone.') and parameter.requires_grad
                if parameter.grad is None
            ], None
    except ValueError as error:
        failure = str(error)
    return [], failure


def _about_original(failure: str, before: str | None) -> str:
    """What to add to a failure of the swapped model, given that of the original."""
    if before is None:
        return '; the config as it was runs'
    if before == failure:
        return '; the config as it was fails in the same way, so the swap is not the cause'
    return f'; the config as it was does not run here either, for another reason: {before}'


def _predict(model: nn.Module, batch: dict[str, Any]) -> None:
    if not hasattr(type(model), 'predict') or getattr(model, 'head', True) is None:
        return  # learns without labels or gives features, and predicts nothing
    with profiling.evaluating(model):
        model(**model.data_preprocessor(copy.deepcopy(batch), False), mode='predict')


def costs(model: nn.Module, part: Mapping, side: int) -> list[Cost]:
    """Parameters and multiply-adds by part for one image, the whole as the last row."""
    shape = kind_of_class(type(model)).image_shape(part, side)
    images = torch.zeros(1, image_channels(part), *shape)
    example = called(model, images)
    if not isinstance(example, dict):
        example = {'inputs': images, 'data_samples': None}
    total = profiling.count(model, example)
    rows = []
    for name, child in model.named_children():
        params = sum(p.numel() for p in child.parameters())
        macs = sum(row.macs for row in total.rows if row.name.split('.')[0] == name)
        if params:
            rows.append(Cost(name, params, macs))
    return [*rows, Cost('whole', total.params, total.macs)]


def compare(old: Config, new: Config, side: int | None = None) -> list[dict[str, Any]]:
    """Build both models, run the new one, and put their costs side by side.

    Args:
        old, new: The config before and after the swap.
        side: Of the made-up images, pixels; pose estimators have theirs in their config.

    Returns:
        One row per part with ``part``, ``side`` (HEIGHTxWIDTH where they differ), ``params``,
        ``macs``, ``new_params`` and ``new_macs``.

    Raises:
        ValueError: One of them cannot be built, or the new one does not run.
    """
    model, part = build(new)
    kind = kind_of_class(type(model))
    side = side or kind.cost_size
    height, width = kind.image_shape(part, side)
    try:
        exercise(model, part, side)
    except ValueError as error:
        about = _about_original(str(error), _failure(old, side))
        raise ValueError(f'{error}{about}') from error
    after = {cost.part: cost for cost in costs(model, part, side)}
    try:
        before = {cost.part: cost for cost in costs(*build(old), side)}
    except Exception as error:  # as above
        raise ValueError(
            f'the new model runs, the config as it was does not: {reason(error)}'
        ) from error
    rows = []
    side = side if height == width else f'{height}x{width}'
    for name in [*(key for key in {**before, **after} if key != 'whole'), 'whole']:
        was, now = (group.get(name, Cost(name, 0, 0)) for group in (before, after))
        rows.append({'part': name, 'side': side, 'params': was.params, 'macs': was.macs,
                     'new_params': now.params, 'new_macs': now.macs})  # fmt: skip
    return rows


def _failure(cfg: Config, side: int) -> str | None:
    """What goes wrong when a config's model trains and predicts, None where nothing does."""
    try:
        exercise(*build(cfg), side)
    except ValueError as error:
        return str(error)
    return None
