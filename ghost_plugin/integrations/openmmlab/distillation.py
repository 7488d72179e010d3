"""Distillation in MMEngine: ``dict(type='ghost_plugin.Distilled', student=..., teacher=...)``.

What is built is the student itself, of a class that adds the distance to the teacher to its losses.
Its parameters, its checkpoints, its predictions and every hook on it stay the student's.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from ...distillation import Distiller, divergence, find, watching
from ...registry import MODELS
from ...utils import optional
from ...utils.modules import eval_mode
from .checkpoint_hook import load_fitting

optional.require('mmengine', 'mmcv')

_logger = logging.getLogger(__name__)


class _Outside:
    """Keeps a module out of its owner's parameters; copies of the owner (EMA) share it."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __deepcopy__(self, memo: dict) -> '_Outside':
        return self


class Distilled:
    """Mixed in front of a student's class by :func:`distilled`."""

    def loss(self, inputs: torch.Tensor, data_samples: list, **kwargs: Any) -> dict[str, Any]:
        """The student's losses, and ``loss_distill``."""
        teacher, distiller = self.teacher.content, self.distiller.content
        names = {**distiller.pairs, **self.logits}
        with watching(self, list(names)) as seen:
            losses = super().loss(inputs, data_samples, **kwargs)
        with watching(teacher, list(names.values())) as wanted, eval_mode(teacher):
            pictures = renormalised(inputs, self.data_preprocessor, teacher.data_preprocessor)
            teacher(pictures, copy.deepcopy(data_samples), mode='tensor')
        distance = distiller.features(seen, wanted)
        for mine, theirs in self.logits.items():
            pairs = zip(seen[mine], wanted[theirs], strict=True)
            distance = distance + sum(divergence(*pair, distiller.temperature) for pair in pairs)
        return {**losses, 'loss_distill': distance * self.distill_weight}

    def init_weights(self) -> None:
        """As everywhere in OpenMMLab, the teacher's too where its config names a checkpoint."""
        super().init_weights()
        if self.init_teacher:
            self.teacher.content.init_weights()
        if self.random_parts:
            _logger.warning(
                "the teacher's %s has random weights; give teacher_checkpoint",
                ', '.join(self.random_parts),
            )

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> nn.Module:
        self.teacher.content._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)


@cache
def _class_of(student: type[nn.Module]) -> type[nn.Module]:
    return type(f'Distilled{student.__name__}', (Distilled, student), {})


def _load(model: nn.Module, checkpoint: str) -> None:
    """What fits of a checkpoint, also of another model's."""
    try:
        load_fitting(model, checkpoint)
    except ValueError as error:
        raise ValueError(
            f'teacher_checkpoint {checkpoint!r} does not load into the teacher, a '
            f'{type(model).__name__}: {error}'
        ) from error


def _random_parts(model: nn.Module, cfg: Mapping) -> list[str]:
    """Names of the parts of a model that nothing gives weights, such as its head."""
    if _has_file(model) or _comes_trained(cfg):
        return []
    parts = {name: part for name, part in model.named_children() if list(part.parameters())}
    return [name for name, part in parts.items() if not any(map(_has_file, part.modules()))]


def _has_file(module: nn.Module) -> bool:
    """Whether OpenMMLab initialises a module from a checkpoint."""
    rows = getattr(module, 'init_cfg', None) or ()
    return any('checkpoint' in row for row in ([rows] if isinstance(rows, Mapping) else rows))


def _comes_trained(node: Any) -> bool:
    """Whether a config has ``pretrained=True`` in it, as for timm's, whose weights come at once."""
    if isinstance(node, Mapping):
        return node.get('pretrained') is True or _comes_trained(list(node.values()))
    return isinstance(node, list | tuple) and any(map(_comes_trained, node))


def renormalised(inputs: torch.Tensor, mine: nn.Module, theirs: nn.Module) -> torch.Tensor:
    """Pictures as another data preprocessor would have normalised them, colours in its order.

    Padding takes part, with the values that it has.
    """
    (mean, std, turned), (other_mean, other_std, other_turned) = map(_look, (mine, theirs))
    pixels = inputs * std + mean
    if turned != other_turned and inputs.shape[1] == 3:
        pixels = pixels.flip(1)
    return (pixels - other_mean) / other_std


def _look(preprocessor: nn.Module) -> tuple[Any, Any, bool]:
    """Mean and std, 0 and 1 without, and whether it turns the order of the colours."""
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    # MMPretrain's classifiers tell the one, mmengine's and all who build on it the other.
    turned = any(getattr(preprocessor, key, False) for key in ('to_rgb', '_channel_conversion'))
    return (0.0 if mean is None else mean), (1.0 if std is None else std), turned


@MODELS.register_module(name='Distilled', force=True)
def distilled(
    student: dict,
    teacher: dict,
    teacher_checkpoint: str | None = None,
    logits: Sequence[str] | Mapping[str, str] = (),
    features: Sequence[str] | Mapping[str, str] = (),
    weight: float = 1.0,
    temperature: float = 1.0,
    data_preprocessor: dict | None = None,
) -> nn.Module:
    """Build a student that learns from a teacher; classifiers and detectors.

    Args:
        student, teacher: Configs of models.
        teacher_checkpoint: File or address of the teacher's weights; without it those that its
            config names are loaded when the student is initialised.
        logits: Modules whose outputs are compared as logits, such as ``['head.fc']``; or
            student's name to teacher's.
        features, temperature: As :class:`ghost_plugin.Distiller`.
        weight: Of ``loss_distill``.
        data_preprocessor: Of both, where a model has none of its own.

    Raises:
        ValueError: A name that a model lacks; nothing to compare; a teacher_checkpoint of which
            nothing loads.
    """
    if not logits and not features:
        raise ValueError('nothing to compare: name modules in logits or features')
    defaults = {'data_preprocessor': data_preprocessor} if data_preprocessor else {}
    pupil, master = (MODELS.build({**defaults, **model}) for model in (student, teacher))
    if teacher_checkpoint:
        _load(master, teacher_checkpoint)
    pairs = dict(logits if isinstance(logits, Mapping) else zip(logits, logits, strict=True))
    for mine, theirs in pairs.items():
        find(pupil, mine), find(master, theirs)
    distiller = Distiller(pupil, master, features=features, temperature=temperature)
    pupil.teacher, pupil.distiller = _Outside(master.requires_grad_(False)), _Outside(distiller)
    pupil.init_teacher = not teacher_checkpoint and any(map(_has_file, master.modules()))
    pupil.random_parts = [] if teacher_checkpoint else _random_parts(master, teacher)
    pupil.logits, pupil.distill_weight = pairs, weight
    pupil.__class__ = _class_of(type(pupil))
    return pupil
