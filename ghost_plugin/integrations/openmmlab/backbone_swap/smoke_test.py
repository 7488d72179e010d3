"""Build both models of a swap, train the new one for a step, let it predict, and count costs."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .... import profiling
from ....utils import optional
from ....utils.modules import eval_mode
from ..model_from_config import model_input
from .config_tree import find_part, type_name
from .dummy_batches import collated, image_channels
from .kinds import find_kind, kind_of_class
from .probing import describe_error, quiet_logging

optional.require('mmengine', 'mmcv')

from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope

# Progress of training that a Runner publishes; some losses depend on it.
_PROGRESS = {'iter': 0, 'epoch': 0, 'max_iters': 1000, 'max_epochs': 12}
_SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'naiveSyncBN')  # they train on GPUs only
_ONE_BY_ONE = ('BottomupPoseEstimator',)  # models that predict one image at a time
_MAX_REGIONS = 32  # sampled regions in one training step


def smoke_test(old: Config, new: Config, size: int | None = None) -> list[dict[str, Any]]:
    """Train and run the model of the new config once, and compare its costs with the old one's.

    Args:
        old: The config before the swap.
        new: The config after the swap.
        size: Size of the random images, pixels; pose estimators have theirs in their config.

    Returns:
        One row per part of the model, the whole last, with ``part``, ``side`` (image size,
        HEIGHTxWIDTH where they differ), ``params``, ``macs``, ``new_params`` and ``new_macs``.

    Raises:
        ValueError: One of them cannot be built, or the new one does not run.
    """
    kind = find_kind(find_part(new.model)[1], new.get('default_scope'))
    size = size or kind.cost_size
    model, part, failure = _attempt(new, size)
    if failure:
        raise ValueError(f'{failure}{_compare_failures(failure, _attempt(old, size)[-1])}')
    after = _costs(model, part, size)
    try:
        before = _costs(*build(old), size)
    except Exception as error:  # code of other packages raises anything
        raise ValueError(
            f'the new model runs, the config as it was does not: {describe_error(error)}'
        ) from error
    height, width = kind.image_shape(part, size)
    rows = []
    for name in [*(key for key in {**before, **after} if key != 'whole'), 'whole']:
        was, now = (found.get(name, (0, 0)) for found in (before, after))
        rows.append({'part': name, 'side': size if height == width else f'{height}x{width}',
                     'params': was[0], 'macs': was[1],
                     'new_params': now[0], 'new_macs': now[1]})  # fmt: skip
    return rows


def verify(old: Config, new: Config) -> list[str]:
    """Build the swapped model and train it for one step on small random images.

    Args:
        old: The config before the swap.
        new: The config after the swap.

    Returns:
        Remarks: parameters of the backbone that got no gradient, or that nothing could be
        verified because the original fails in the same way.

    Raises:
        ValueError: The new model fails, and the original does not or in another way.
    """
    model, _, failure = _attempt(new)
    if failure:
        before = _attempt(old)[-1]
        about = _compare_failures(failure, before)
        if before != failure:
            raise ValueError(f'{failure}{about}')
        return [f'NOT VERIFIED by a training step: {failure}{about}']
    unused = [
        name
        for name, parameter in model.named_parameters()
        if name.startswith('backbone.') and parameter.requires_grad and parameter.grad is None
    ]
    if unused:
        return [
            f'{len(unused)} parameters of the backbone get no gradient, such as {unused[0]}, as '
            'nothing reads their level; DistributedDataParallel needs find_unused_parameters=True'
        ]
    return []


def build(cfg: Config) -> tuple[nn.Module, Mapping]:
    """Build the model of a config without pretrained weights, light enough for a small trial.

    Synchronised norms, fixed sizes of padded images, augmentations that enlarge small images and
    large numbers of sampled regions are replaced.

    Returns:
        The model that holds the backbone, and its config.

    Raises:
        ValueError: It cannot be built.
    """
    part = light_config(cfg)
    kind = find_kind(part, cfg.get('default_scope'))
    try:
        with quiet_logging():
            init_default_scope(cfg.get('default_scope') or kind.scope)
            built = MODELS.build(part)
            built.init_weights()
        return built, part
    except Exception as error:  # constructors of other packages raise anything
        raise ValueError(f'cannot build the model: {describe_error(error)}') from error


def light_config(cfg: Config) -> Mapping:
    """The config of the model that holds the backbone, made light as for :func:`build`."""
    model = copy.deepcopy(cfg.model)
    _, part = find_part(model)
    kind = find_kind(part, cfg.get('default_scope'))
    if cfg.get('data_preprocessor') and not part.get('data_preprocessor'):
        part.data_preprocessor = copy.deepcopy(cfg.data_preprocessor)  # as the Runner does it
    if kind.name == 'detector' and part is not model:
        part.setdefault(
            'data_preprocessor', {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32}
        )
    preprocessor = part.get('data_preprocessor') or {}
    if kind.name != 'classifier':
        preprocessor.pop('batch_augments', None)
    if str(preprocessor.get('type')).endswith('PPYOLOEDetDataPreprocessor'):
        preprocessor['type'] = 'mmdet.DetDataPreprocessor'  # it cannot train without augmentations
    if preprocessor.get('size'):
        preprocessor.update(size=None, size_divisor=32)
    _lighten(part)
    return part


def _lighten(node: Any) -> None:
    """Remove checkpoints, synchronised norms and large samplers from a config, in place."""
    if isinstance(node, Mapping):
        init, sampler = node.get('init_cfg'), node.get('sampler')
        if isinstance(init, Mapping) and init.get('type') == 'Pretrained':
            node['init_cfg'] = None
        if node.get('pretrained'):
            node['pretrained'] = None if isinstance(node['pretrained'], str) else False
        if node.get('type') in _SYNC_NORMS:
            node['type'] = 'BN'
        if isinstance(sampler, Mapping) and isinstance(sampler.get('num'), int):
            sampler['num'] = min(sampler['num'], _MAX_REGIONS)
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            _lighten(item)


def train_and_predict(model: nn.Module, part: Mapping, size: int = 128) -> float:
    """Run one step of training and one prediction on random images.

    Args:
        model: The model, as :func:`build` returns it.
        part: Its config, as :func:`build` returns it.
        size: Image size, pixels.

    Returns:
        The loss.

    Raises:
        ValueError: The step or the prediction fails, or gives losses or gradients that are not
            finite or none for the backbone.
    """
    batch = _batch(model, part, size)
    loss = _train(model, batch)
    # Some models learn without labels or give features, and predict nothing.
    if hasattr(type(model), 'predict') and getattr(model, 'head', True) is not None:
        try:
            with eval_mode(model):
                if type_name(part) in _ONE_BY_ONE:
                    batch = {key: values[:1] for key, values in batch.items()}
                data = model.data_preprocessor(copy.deepcopy(batch), False)
                model(**data, mode='predict')
        except Exception as error:  # code of other packages raises anything
            raise ValueError(f'the model does not predict: {describe_error(error)}') from error
    return loss


def _batch(model: nn.Module, part: Mapping, size: int) -> dict[str, Any]:
    try:
        return kind_of_class(type(model)).batch(part, size)
    except Exception as error:  # code of other packages raises anything
        raise ValueError(f'no batch can be made for the model: {describe_error(error)}') from error


def _train(model: nn.Module, batch: dict[str, Any]) -> float:
    """The loss of one training step, whose gradients stay in the model."""
    model.train()
    model.zero_grad()
    MessageHub.get_current_instance().update_info_dict(_PROGRESS)
    try:
        batch = copy.deepcopy(batch)
        if type(model.data_preprocessor).__name__ == 'YOLOv5DetDataPreprocessor':
            batch = collated(batch)
        data = model.data_preprocessor(batch, True)
        if getattr(model, 'head', True) is None:  # a backbone that only extracts features
            loss = sum(one.square().mean() for one in model(**data))
        else:
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
    except Exception as error:  # code of other packages raises anything
        raise ValueError(f'the model does not run: {describe_error(error)}') from error
    if not loss.isfinite():
        raise ValueError('the loss of a training step is not finite')
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    broken = [name for name, gradient in found.items() if not gradient.isfinite().all()]
    if broken:
        raise ValueError(f'gradients that are not finite: {broken[:3]}')
    if not any(name.startswith('backbone') for name in found):
        raise ValueError('no gradient reaches the backbone; freeze fewer stages')
    return loss.item()


def _attempt(cfg: Config, size: int | None = None) -> tuple[Any, Mapping, str | None]:
    """Try one training step at the first size that works, or a step and a prediction at ``size``.

    Returns:
        The model with its gradients, its config, and the failure, if any.
    """
    model, part, failure = None, {}, None
    try:
        model, part = build(cfg)
        for one in (size,) if size else kind_of_class(type(model)).trial_sizes:
            try:
                if size:
                    train_and_predict(model, part, size)
                else:
                    _train(model, _batch(model, part, one))
                return model, part, None
            except ValueError as error:
                failure = str(error)
    except ValueError as error:
        failure = str(error)
    return model, part, failure


def _compare_failures(failure: str, before: str | None) -> str:
    """Remark on a failure of the swapped model, given that of the original."""
    if before is None:
        return '; the config as it was runs'
    if before == failure:
        return '; the config as it was fails in the same way, so the swap is not the cause'
    return f'; the config as it was does not run here either, for another reason: {before}'


def _costs(model: nn.Module, part: Mapping, size: int) -> dict[str, tuple[int, int]]:
    """Parameters and multiply-adds of each part for one image, and of the whole."""
    shape = kind_of_class(type(model)).image_shape(part, size)
    images = torch.zeros(1, image_channels(part), *shape)
    example = model_input(model, images)
    if not isinstance(example, dict):
        example = {'inputs': images, 'data_samples': None}
    total = profiling.count(model, example)
    costs = {}
    for name, child in model.named_children():
        params = sum(p.numel() for p in child.parameters())
        macs = sum(row.macs for row in total.rows if row.name.split('.')[0] == name)
        if params:
            costs[name] = (params, macs)
    return {**costs, 'whole': (total.params, total.macs)}
