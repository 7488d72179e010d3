"""Distillation in MMEngine: ``dict(type='ghost_plugin.Distilled', student=..., teacher=...)``.

The result is the student itself, with a class that adds the distance to the teacher to its losses.
Parameters, checkpoints, predictions and hooks stay those of the student, which a wrapper around it
would change; that is why its class is replaced.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...distillation import Distiller, divergence, find, watching
from ...registry import MODELS
from ...utils import optional
from ...utils.modules import eval_mode
from .checkpoint_hook import load_matching

optional.require('mmengine', 'mmcv')

# Attributes of data preprocessors of MMPretrain, mmengine and MMSegmentation.
_FLIPPED = ('to_rgb', '_channel_conversion', 'channel_conversion')
_logger = logging.getLogger(__name__)


class _Unregistered:
    """Keeps a module out of its owner's parameters; copies of the owner (EMA) share it."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __deepcopy__(self, memo: dict) -> '_Unregistered':
        return self


class Distilled:
    """Mixin that :func:`distilled` puts in front of the class of a student."""

    def loss(self, inputs: torch.Tensor, data_samples: list, **kwargs: Any) -> dict[str, Any]:
        """Compute the student's losses and ``loss_distill``.

        Args:
            inputs: Images of the student's preprocessor, (N, C, H, W).
            data_samples: Labels, as OpenMMLab passes them.
            kwargs: Further arguments of the student.
        """
        teacher, distiller = self.teacher.content, self.distiller.content
        names = {**distiller.pairs, **self.logits}
        with watching(self, list(names)) as seen:
            losses = super().loss(inputs, data_samples, **kwargs)
        with watching(teacher, list(names.values())) as wanted, eval_mode(teacher):
            images = renormalize(inputs, self.data_preprocessor, teacher.data_preprocessor)
            teacher(images, copy.deepcopy(data_samples), mode='tensor')
        distance = distiller.features(seen, wanted)
        for mine, theirs in self.logits.items():
            pairs = zip(seen[mine], wanted[theirs], strict=True)
            distance = distance + sum(divergence(*pair, distiller.temperature) for pair in pairs)
        return {**losses, 'loss_distill': distance * self.distill_weight}

    def init_weights(self) -> None:
        """Initialise the student, and the teacher where its config names a checkpoint."""
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


def _random_parts(model: nn.Module, cfg: Mapping) -> list[str]:
    """Names of the parts of a model, such as its head, that no checkpoint initialises."""
    if _has_checkpoint(model) or _is_pretrained(cfg):
        return []
    parts = {name: part for name, part in model.named_children() if list(part.parameters())}
    return [name for name, part in parts.items() if not any(map(_has_checkpoint, part.modules()))]


def _has_checkpoint(module: nn.Module) -> bool:
    """True when OpenMMLab initialises a module from a checkpoint."""
    rows = getattr(module, 'init_cfg', None) or ()
    return any('checkpoint' in row for row in ([rows] if isinstance(rows, Mapping) else rows))


def _is_pretrained(node: Any) -> bool:
    """True when a config contains ``pretrained=True``, as for models of timm."""
    if isinstance(node, Mapping):
        return node.get('pretrained') is True or _is_pretrained(list(node.values()))
    return isinstance(node, list | tuple) and any(map(_is_pretrained, node))


def renormalize(inputs: torch.Tensor, mine: nn.Module, theirs: nn.Module) -> torch.Tensor:
    """Convert images from the normalisation of one data preprocessor to that of another.

    Args:
        inputs: Images, (N, C, H, W), padding included.
        mine: Data preprocessor that made them.
        theirs: Data preprocessor whose mean, std and order of colours they get.
    """
    (mean, std, flipped), (other_mean, other_std, other_flipped) = map(_statistics, (mine, theirs))
    pixels = inputs * std + mean
    if flipped != other_flipped and inputs.shape[1] == 3:
        pixels = pixels.flip(1)
    return (pixels - other_mean) / other_std


def _statistics(preprocessor: nn.Module) -> tuple[Any, Any, bool]:
    """Mean, std, and True where the order of the colours is reversed."""
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    flipped = any(getattr(preprocessor, key, False) for key in _FLIPPED)
    return (0.0 if mean is None else mean), (1.0 if std is None else std), flipped


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
    """Build a student that learns from a teacher, which may be of any kind.

    Args:
        student: Config of the student.
        teacher: Config of the teacher.
        teacher_checkpoint: File or address of the teacher's weights; without it those that its
            config names are loaded when the student is initialised.
        logits: Modules whose outputs are compared as logits, such as ``['head.fc']``; or
            student's name to teacher's.
        features, temperature: As :class:`ghost_plugin.Distiller`.
        weight: Weight of ``loss_distill``.
        data_preprocessor: Data preprocessor of both, where a model has none of its own.

    Raises:
        ValueError: A name that a model lacks; nothing to compare; a teacher_checkpoint of which
            nothing loads.
    """
    if not logits and not features:
        raise ValueError('nothing to compare: name modules in logits or features')
    defaults = {'data_preprocessor': data_preprocessor} if data_preprocessor else {}
    pupil, master = (MODELS.build({**defaults, **model}) for model in (student, teacher))
    if teacher_checkpoint:
        try:
            load_matching(master, teacher_checkpoint)
        except ValueError as error:
            raise ValueError(
                f'teacher_checkpoint {teacher_checkpoint!r} does not load into the teacher, a '
                f'{type(master).__name__}: {error}'
            ) from error
    pairs = dict(logits if isinstance(logits, Mapping) else zip(logits, logits, strict=True))
    for mine, theirs in pairs.items():
        find(pupil, mine), find(master, theirs)
    master.requires_grad_(False)
    distiller = Distiller(pupil, master, features=features, temperature=temperature)
    pupil.teacher, pupil.distiller = _Unregistered(master), _Unregistered(distiller)
    pupil.init_teacher = not teacher_checkpoint and any(map(_has_checkpoint, master.modules()))
    pupil.random_parts = [] if teacher_checkpoint else _random_parts(master, teacher)
    pupil.logits, pupil.distill_weight = pairs, weight
    pupil.__class__ = type(f'Distilled{type(pupil).__name__}', (Distilled, type(pupil)), {})
    return pupil
