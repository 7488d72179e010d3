"""Both models of a swap built, one step of training and one prediction of the new one, costs."""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ... import _optional, analysis
from ..configs import called
from .inputs import classification_batch, detection_batch, image_channels
from .places import find_part
from .swapping import is_classifier

_optional.require('mmengine', 'mmcv')

from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope

SIDES = {'classifier': 224, 'detector': 256}  # of made-up pictures, pixels
# What a Runner tells losses that change while a model trains.
_PROGRESS = {'iter': 0, 'epoch': 0, 'max_iters': 1000, 'max_epochs': 12}


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of one part of a model, such as its neck."""

    part: str
    params: int
    macs: int


def build(cfg: Config) -> tuple[nn.Module, Mapping]:
    """The detector or classifier of a config without pretrained weights, and its config.

    Raises:
        ValueError: It cannot be built.
    """
    model = copy.deepcopy(cfg.model)
    _, part = find_part(model)
    classifier = is_classifier(part)
    if cfg.get('data_preprocessor') and not part.get('data_preprocessor'):
        part.data_preprocessor = cfg.data_preprocessor  # as the Runner does it
    if not classifier and part is not model:
        part.setdefault(
            'data_preprocessor', {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32}
        )
    if not classifier:  # they would make small pictures large
        (part.get('data_preprocessor') or {}).pop('batch_augments', None)
    _drop_pretrained(part)
    init_default_scope(cfg.get('default_scope') or ('mmpretrain' if classifier else 'mmdet'))
    try:
        with _quiet():
            built = MODELS.build(part)
            built.init_weights()
        return built, part
    except Exception as error:  # foreign constructors raise whatever they like
        raise ValueError(f'cannot build the model: {_reason(error)}') from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines in which mmengine tells how every parameter was initialised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _drop_pretrained(node: Any) -> None:
    """Take all weights to load out of a config."""
    if isinstance(node, Mapping):
        init = node.get('init_cfg')
        if isinstance(init, Mapping) and init.get('type') == 'Pretrained':
            node['init_cfg'] = None
        if 'pretrained' in node:
            node['pretrained'] = None if isinstance(node['pretrained'], str) else False
        for value in node.values():
            _drop_pretrained(value)
    elif isinstance(node, list | tuple):
        for item in node:
            _drop_pretrained(item)


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


def exercise(model: nn.Module, part: Mapping, side: int = 128) -> float:
    """One step of training and one prediction on made-up pictures.

    Args:
        model, part: As :func:`build` returns them.
        side: Of the pictures, pixels.

    Returns:
        The loss.

    Raises:
        ValueError: The step or the prediction fails, or gives losses or gradients that are not
            finite or none for the backbone.
    """
    make = classification_batch if is_classifier(part) else detection_batch
    batch = make(part, side)
    try:
        loss = _train(model, batch)
        _predict(model, batch)
    except ValueError:
        raise
    except Exception as error:  # as above
        raise ValueError(f'the model does not run: {_reason(error)}') from error
    return loss


def _train(model: nn.Module, batch: dict[str, Any]) -> float:
    model.train()
    MessageHub.get_current_instance().update_info_dict(_PROGRESS)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    if getattr(model, 'head', True) is None:  # a backbone to take features from
        loss = sum(one.square().mean() for one in model(**data))
    else:
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    broken = [name for name, gradient in found.items() if not gradient.isfinite().all()]
    if broken or not loss.isfinite():
        raise ValueError(f'loss {loss.item()}, gradients that are not finite: {broken[:3]}')
    if not any(name.startswith('backbone') for name in found):
        raise ValueError('no gradient reaches the backbone; freeze fewer stages')
    return loss.item()


def _predict(model: nn.Module, batch: dict[str, Any]) -> None:
    if not hasattr(type(model), 'predict') or getattr(model, 'head', True) is None:
        return  # learns without labels or gives features, and predicts nothing
    with analysis.evaluating(model):
        model(**model.data_preprocessor(copy.deepcopy(batch), False), mode='predict')


def costs(model: nn.Module, part: Mapping, side: int) -> list[Cost]:
    """Parameters and multiply-adds by part for one picture, the whole as the last row."""
    images = torch.zeros(1, image_channels(part), side, side)
    total = analysis.count(model, called(model, images))
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
        side: Of the made-up pictures, pixels.

    Returns:
        One row per part with ``part``, ``side``, ``params``, ``macs``, ``new_params`` and
        ``new_macs``.

    Raises:
        ValueError: One of them cannot be built, or the new one does not run.
    """
    model, part = build(new)
    side = side or SIDES['classifier' if is_classifier(part) else 'detector']
    try:
        exercise(model, part, side)
    except ValueError as error:
        raise ValueError(f'{error}{_also_before(old, side)}') from error
    after = {cost.part: cost for cost in costs(model, part, side)}
    try:
        before = {cost.part: cost for cost in costs(*build(old), side)}
    except Exception as error:  # as above
        raise ValueError(
            f'the new model runs, the config as it was does not: {_reason(error)}'
        ) from error
    rows = []
    for name in [*(key for key in {**before, **after} if key != 'whole'), 'whole']:
        was, now = (group.get(name, Cost(name, 0, 0)) for group in (before, after))
        rows.append({'part': name, 'side': side, 'params': was.params, 'macs': was.macs,
                     'new_params': now.params, 'new_macs': now.macs})  # fmt: skip
    return rows


def _also_before(old: Config, side: int) -> str:
    """What to add to an error where the config failed before the swap already."""
    try:
        exercise(*build(old), side)
    except ValueError as error:
        return f'; the config as it was does not run here either: {error}'
    return '; the config as it was runs'
