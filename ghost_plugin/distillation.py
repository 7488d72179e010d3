"""Distillation: the loss that a teacher adds to a student's, for any train loop.

Sources: Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531) for
the logits; Romero et al., FitNets, ICLR 2015 (arXiv 1412.6550) for the features.
"""

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .layers.common import check_module
from .utils.modules import as_arguments, call_model, clone_tensors, eval_mode, tensors_in

# Stands for the input of the last global pooling, one of these classes.
BEFORE_POOLING = 'before_pooling'
_POOLINGS = ('AdaptiveAvgPool2d', 'SelectAdaptivePool2d', 'GlobalAveragePooling')
Features = list[torch.Tensor]


class Distiller:
    """Runs a student and a teacher on the same input and compares their outputs.

    The teacher runs in eval mode without gradients. Neither model is changed, and neither is a part
    of this object's parameters: optimizer and checkpoint hold the student.

    >>> distiller = Distiller(student, teacher, features=['layer3', 'before_pooling'])
    >>> output, distance = distiller(images)
    >>> loss = cross_entropy(output, labels) + distance

    Args:
        student, teacher: Any modules that take the same input.
        logit_weight: Weight of the Kullback-Leibler divergence between the outputs; 0 for models
            whose output is not a tensor of logits.
        features: Modules whose outputs are compared by their squared distance, relative to the
            teacher's mean square: names that both have, or student's name to teacher's.
            ``'before_pooling'`` is the input of the last global pooling.
        feature_weight: Weight of the mean over the features.
        temperature: Divides the logits; gradients keep their size.
        logits: Deprecated name of ``logit_weight``.

    Raises:
        ValueError: A name that a model lacks, with the nearest ones it has; nothing to compare.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        logit_weight: float = 1.0,
        features: Sequence[str] | Mapping[str, str] = (),
        feature_weight: float = 1.0,
        temperature: float = 1.0,
        logits: float | None = None,
    ) -> None:
        if logits is not None:
            warnings.warn('logits= is called logit_weight= now', FutureWarning, stacklevel=2)
            logit_weight = logits
        if temperature <= 0:
            raise ValueError(f'temperature must be above 0, got {temperature!r}')
        if min(logit_weight, feature_weight) < 0 or not (
            logit_weight or (features and feature_weight)
        ):
            raise ValueError('nothing to compare: give logit_weight > 0 or features')
        check_module(student)
        check_module(teacher)
        self.student, self.teacher = student, teacher
        self.logit_weight, self.feature_weight = logit_weight, feature_weight
        self.temperature = temperature
        pairs = features if isinstance(features, Mapping) else {name: name for name in features}
        self.pairs = dict(pairs)
        for model, names in ((student, self.pairs), (teacher, self.pairs.values())):
            for name in names:
                find(model, name)

    def __call__(self, example: Any) -> tuple[Any, torch.Tensor]:
        """The student's output and the distance to the teacher, a scalar, for one batch."""
        with watching(self.student, list(self.pairs)) as seen:
            # A copy, so that the teacher gets the same input even if the student writes to it.
            # Gradients still reach the batch.
            args, kwargs = clone_tensors(as_arguments(example))
            output = self.student(*args, **kwargs)
        with watching(self.teacher, list(self.pairs.values())) as wanted, eval_mode(self.teacher):
            target = call_model(self.teacher, example)
        distance = self.features(seen, wanted)
        if self.logit_weight:
            distance = distance + self.logit_weight * divergence(output, target, self.temperature)
        return output, distance

    def features(
        self, seen: Mapping[str, Features], wanted: Mapping[str, Features]
    ) -> torch.Tensor:
        """Weighted mean distance of the features, a scalar.

        Args:
            seen: Outputs of the student's modules by name.
            wanted: Outputs of the teacher's modules by name.
        """
        distances = [
            _distance(a, b, f'{mine!r} of the student and {theirs!r} of the teacher')
            for mine, theirs in self.pairs.items()
            for a, b in zip(
                _outputs(seen, mine, 'student'), _outputs(wanted, theirs, 'teacher'), strict=True
            )
        ]
        mean = torch.stack(distances).mean() if distances else torch.zeros(())
        return self.feature_weight * mean


def divergence(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of logits from a target's, mean over the batch.

    Args:
        logits: (N, classes) of the student.
        target: (N, classes) of the teacher.
        temperature: Divides both; the result is multiplied by its square.

    Raises:
        ValueError: The shapes differ.
    """
    if not all(isinstance(x, torch.Tensor) for x in (logits, target)) or (
        logits.shape != target.shape
    ):
        shapes = [getattr(x, 'shape', type(x).__name__) for x in (logits, target)]
        raise ValueError(
            f'logits of student and teacher must be tensors of one shape, got {shapes[0]} and '
            f'{shapes[1]}; logit_weight=0 compares features only'
        )
    log_p = F.log_softmax(logits.float() / temperature, dim=1)
    log_q = F.log_softmax(target.float() / temperature, dim=1)
    kl = F.kl_div(log_p, log_q, reduction='batchmean', log_target=True)
    return kl * temperature**2


def find(model: nn.Module, name: str) -> nn.Module:
    """A module by name.

    Args:
        model: A model.
        name: Name of a module, or ``'before_pooling'`` for the last global pooling.

    Raises:
        ValueError: There is no such module; the nearest names are listed.
    """
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
def watching(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Features]]:
    """Record the outputs of modules while the block runs.

    Args:
        model: A model.
        names: Names of modules; for ``'before_pooling'`` the input is recorded.

    Yields:
        Tensors by name, filled by each call.
    """
    seen: dict[str, Features] = {}

    def record_output(name: str) -> Any:
        return lambda module, inputs, out: seen.update({name: tensors_in(out)})

    def record_input(*call: Any) -> None:
        seen[BEFORE_POOLING] = tensors_in(call[1])

    with ExitStack() as hooks:
        for name in names:
            module = find(model, name)
            if name == BEFORE_POOLING:
                handle = module.register_forward_pre_hook(record_input)
            else:
                handle = module.register_forward_hook(record_output(name))
            hooks.callback(handle.remove)
        yield seen


def _outputs(seen: Mapping[str, Features], name: str, whose: str) -> Features:
    if not seen.get(name):
        raise ValueError(
            f'{name!r} of the {whose} returned no tensor in this call: it did not run, or returns '
            'something else; name another module'
        )
    return seen[name]


def _distance(mine: torch.Tensor, theirs: torch.Tensor, which: str) -> torch.Tensor:
    if mine.shape != theirs.shape:
        raise ValueError(
            f'{which} differ in shape: {tuple(mine.shape)} and {tuple(theirs.shape)}; compare '
            'modules with equal output shapes'
        )
    theirs = theirs.detach().float()
    return F.mse_loss(mine.float(), theirs) / theirs.square().mean().clamp_min(1e-12)
