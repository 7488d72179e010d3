"""A teacher beside a student: what it adds to the loss, for any train loop.

Sources: Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531) for
the logits; Romero et al., FitNets, ICLR 2015 (arXiv 1412.6550) for the features.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .layers.common import check_module
from .utils.modules import as_arguments, call_model, clone_tensors, eval_mode, tensors_in

# Names of pooling layers; the map in front of the last one stands for a network's features.
BEFORE_POOLING = 'before_pooling'
_POOLINGS = ('AdaptiveAvgPool2d', 'SelectAdaptivePool2d', 'GlobalAveragePooling')
Maps = list[torch.Tensor]


class Distiller:
    """Runs a student and a teacher on the same input and compares what they give.

    The teacher is in eval mode while it runs and gets no gradient; neither model is changed, and
    neither is a part of this object's parameters: optimizer and checkpoint hold the student.

    >>> distiller = Distiller(student, teacher, features=['layer3', 'before_pooling'])
    >>> logits, distance = distiller(images)
    >>> loss = cross_entropy(logits, labels) + distance

    Args:
        student, teacher: Any modules that take the same input.
        logits: Weight of the Kullback-Leibler divergence between the outputs; 0 for models whose
            output is not a tensor of logits.
        features: Modules whose outputs are compared by their squared distance in units of the
            teacher's: names that both have, or student's name to teacher's. ``'before_pooling'``
            is the last map before the last global pooling.
        feature_weight: Weight of the mean over the features.
        temperature: Divides the logits; gradients keep their size.

    Raises:
        ValueError: A name that a model lacks, with the nearest ones it has; nothing to compare.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        logits: float = 1.0,
        features: Sequence[str] | Mapping[str, str] = (),
        feature_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f'temperature must be above 0, got {temperature!r}')
        if logits < 0 or feature_weight < 0 or not (logits or (features and feature_weight)):
            raise ValueError('nothing to compare: give logits > 0 or features')
        check_module(student)
        check_module(teacher)
        self.student, self.teacher = student, teacher
        self.logits, self.feature_weight = logits, feature_weight
        self.temperature = temperature
        pairs = features if isinstance(features, Mapping) else {name: name for name in features}
        self.pairs = dict(pairs)
        for model, names in ((student, self.pairs), (teacher, self.pairs.values())):
            for name in names:
                find(model, name)

    def __call__(self, example: Any) -> tuple[Any, torch.Tensor]:
        """The student's output and the distance to the teacher, a scalar, for one batch."""
        with watching(self.student, list(self.pairs)) as seen:
            # A copy, so that the teacher gets the same even if the student writes into it; its
            # gradients go on to the batch.
            args, kwargs = clone_tensors(as_arguments(example))
            output = self.student(*args, **kwargs)
        with watching(self.teacher, list(self.pairs.values())) as wanted, eval_mode(self.teacher):
            target = call_model(self.teacher, example)
        distance = self.features(seen, wanted)
        if self.logits:
            distance = distance + self.logits * divergence(output, target, self.temperature)
        return output, distance

    def features(self, seen: Mapping[str, Maps], wanted: Mapping[str, Maps]) -> torch.Tensor:
        """Weighted mean distance of the features, a scalar."""
        distances = [
            _distance(a, b, f'{mine!r} of the student and {theirs!r} of the teacher')
            for mine, theirs in self.pairs.items()
            for a, b in zip(
                _given(seen, mine, 'student'), _given(wanted, theirs, 'teacher'), strict=True
            )
        ]
        mean = torch.stack(distances).mean() if distances else torch.zeros(())
        return self.feature_weight * mean


def divergence(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of (N, classes) logits from a target's, mean over the batch."""
    if not all(isinstance(x, torch.Tensor) for x in (logits, target)) or (
        logits.shape != target.shape
    ):
        shapes = [getattr(x, 'shape', type(x).__name__) for x in (logits, target)]
        raise ValueError(
            f'logits of student and teacher must be tensors of one shape, got {shapes[0]} and '
            f'{shapes[1]}; logits=0 compares features only'
        )
    log_p = F.log_softmax(logits.float() / temperature, dim=1)
    log_q = F.log_softmax(target.float() / temperature, dim=1)
    kl = F.kl_div(log_p, log_q, reduction='batchmean', log_target=True)
    return kl * temperature**2


def find(model: nn.Module, name: str) -> nn.Module:
    """A module by name; ``'before_pooling'`` is the last global pooling, whose input counts."""
    modules = dict(model.named_modules())
    if name == BEFORE_POOLING:
        pools = [m for m in modules.values() if type(m).__name__ in _POOLINGS]
        if not pools:
            raise ValueError(
                f'{type(model).__name__} has no global pooling (one of {", ".join(_POOLINGS)}); '
                'name a module instead'
            )
        return pools[-1]
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=3)
        hint = f'; did you mean {", ".join(map(repr, near))}?' if near else ''
        raise ValueError(f'{type(model).__name__} has no module {name!r}{hint}')
    return modules[name]


@contextmanager
def watching(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Maps]]:
    """The tensors that the named modules give while the block runs."""
    seen: dict[str, Maps] = {}

    def output(name: str) -> Any:
        return lambda module, inputs, out: seen.update({name: tensors_in(out)})

    def given(module: nn.Module, inputs: Any) -> None:
        seen[BEFORE_POOLING] = tensors_in(inputs)

    with ExitStack() as hooks:
        for name in names:
            module = find(model, name)
            if name == BEFORE_POOLING:
                handle = module.register_forward_pre_hook(given)
            else:
                handle = module.register_forward_hook(output(name))
            hooks.callback(handle.remove)
        yield seen


def _given(seen: Mapping[str, Maps], name: str, whose: str) -> Maps:
    if not seen.get(name):
        raise ValueError(
            f'{name!r} of the {whose} gave no tensor in this call: it did not run, or gives '
            'something else; name a module that does'
        )
    return seen[name]


def _distance(mine: torch.Tensor, theirs: torch.Tensor, which: str) -> torch.Tensor:
    if mine.shape != theirs.shape:
        raise ValueError(
            f'{which} differ in shape: {tuple(mine.shape)} and {tuple(theirs.shape)}; compare '
            'modules that give equal maps'
        )
    theirs = theirs.detach().float()
    return F.mse_loss(mine.float(), theirs) / theirs.square().mean().clamp_min(1e-12)
