"""A training loop for classifiers, with or without a teacher, on timm's optimizers and schedules.

The random numbers of an epoch depend on the seed and the epoch only, so an interrupted training
that is resumed ends with the same weights as an uninterrupted one.
"""

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..distillation import Distiller
from ..utils.checkpoint_io import save
from ..utils.modules import deepcopy_detached
from ..utils.torch_compat import GradScaler
from .config import Recipe, create_optimizer, create_schedule
from .evaluation import logits_of
from .loader import Batch, ImageLoader, ProgressFn, no_progress

Validate = Callable[[nn.Module], dict[str, float]]


def finetune(
    model: nn.Module,
    loader: ImageLoader,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    state: str | os.PathLike | None = None,
    resume: bool = False,
    validate: Validate | None = None,
    progress: ProgressFn = no_progress,
) -> list[dict[str, float]]:
    """Train a classifier in place.

    Args:
        model: The student; it ends with its averaged weights if the recipe has an EMA.
        loader: Training images, on the device of both models.
        recipe: Settings of the training.
        teacher: Runs beside the student in eval mode; without it only the labels count.
        state: File with all that a resumed training needs, written after each epoch.
        resume: Continue from that file if it exists. The weights are bit-equal to those of an
            uninterrupted training with the same number of loader workers.
        validate: Called after each epoch with the resulting model; its figures are returned.
        progress: Shows the steps.

    Returns:
        One dictionary per epoch: ``epoch``, ``loss``, ``seconds`` and the figures of ``validate``.

    Raises:
        ValueError: Neither labels nor a teacher; the state belongs to another recipe or model.
    """
    if loader.images.labels is None and (recipe.label_weight or teacher is None):
        raise ValueError(
            f'{loader.images.source} has no class folders; with label_weight=0 a teacher is enough'
        )
    training = _Training(model, recipe, loader, teacher)
    with _global_rng_restored():
        if resume and state is not None and Path(state).exists():
            training.restore(Path(state))
        while training.step < training.steps:
            training.run_epoch(progress)
            if validate is not None:
                training.history[-1] |= validate(training.result)
            if state is not None:
                save(training.state_dict(), state)
    if training.ema is not None:
        model.load_state_dict(training.result.state_dict())
    return training.history


class _Training:
    """A model and everything that changes during its training.

    Attributes:
        step: Number of batches seen; ``steps`` is the last one.
        ema: Averaged copy of the model, or None.
        history: Figures of the epochs.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, loader: ImageLoader, teacher: nn.Module | None
    ) -> None:
        self.model, self.recipe, self.loader = model, recipe, loader
        self.epoch_steps = loader.steps(recipe.batch)
        self.steps = max(round(recipe.epochs * self.epoch_steps), 1)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.ema = None
        if recipe.ema:
            from timm.utils import ModelEmaV3

            # The decay of step s is at most s / (10 + s), so that the first weights are forgotten.
            average = {'use_warmup': True, 'warmup_gamma': 10.0, 'warmup_power': 1.0}
            self.ema = ModelEmaV3(deepcopy_detached(model), recipe.ema, **average)
        self.optimizer = create_optimizer(model, recipe)
        self.schedule = create_schedule(self.optimizer, self.steps, recipe.warmup)
        self.loss = _loss_function(model, teacher, recipe)
        device = loader.device.type
        scaled = device == 'cuda' and not torch.cuda.is_bf16_supported()
        dtype = torch.float16 if scaled else torch.bfloat16
        self.autocast = torch.autocast(device, dtype, enabled=recipe.amp)
        self.scaler = GradScaler(enabled=recipe.amp and scaled)

    @property
    def result(self) -> nn.Module:
        """The averaged model, or the model itself."""
        return self.model if self.ema is None else self.ema.module

    def run_epoch(self, progress: ProgressFn) -> None:
        """Train to the end of the current epoch, or of the training."""
        epoch = self.step // self.epoch_steps
        count = min(self.epoch_steps, self.steps - self.step)
        start, total = time.monotonic(), 0.0
        self.model.train()
        seed = self.recipe.seed * 1_000_003 + epoch
        batches = islice(self.loader.shuffled(self.recipe.batch, seed), count)
        while group := list(islice(batches, self.recipe.accumulate)):
            total += self._update(group)
            mean = total / (self.step - epoch * self.epoch_steps)
            note = f'epoch {epoch + 1}/{math.ceil(self.recipe.epochs)}, loss {mean:.3f}'
            progress('training', self.step, self.steps, note)
        seconds = time.monotonic() - start
        self.history.append({'epoch': epoch + 1, 'loss': total / count, 'seconds': seconds})

    def _update(self, group: list[Batch]) -> float:
        """Take one step of the optimizer; returns the sum of the batches' losses."""
        self.schedule.step_update(self.step)
        self.optimizer.zero_grad()
        losses = []
        for images, labels in group:
            with self.autocast:
                loss = self.loss(images, labels)
            self.scaler.scale(loss / len(group)).backward()
            losses.append(loss.detach())
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += len(group)
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        total = float(torch.stack(losses).sum())
        if not math.isfinite(total):
            raise ValueError(f'the loss is {total} at step {self.step}; try a smaller lr')
        return total

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs: tensors and plain values."""
        return {
            'recipe': asdict(self.recipe),
            'per_epoch': self.epoch_steps,
            'step': self.step,
            'history': self.history,
            'model': self.model.state_dict(),
            'average': None if self.ema is None else self.ema.module.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
        }

    def restore(self, path: Path) -> None:
        """Continue from a file with :meth:`state_dict`.

        Raises:
            ValueError: It is the state of another training.
        """
        try:
            saved = torch.load(path, map_location='cpu', weights_only=True)
            other = {**saved['recipe'], 'batches an epoch': saved['per_epoch']}
        except Exception as error:  # a foreign file can raise anything
            raise ValueError(f'{path} is not the state of a training; remove it') from error
        mine = {**asdict(self.recipe), 'batches an epoch': self.epoch_steps}
        changes = ', '.join(
            f'{key} {other.get(key)} there, {mine[key]} here'
            for key in mine
            if other.get(key) != mine[key]
        )
        if changes:
            raise ValueError(f'{path} is of another training: {changes}; without resume it is new')
        try:
            self.model.load_state_dict(saved['model'])
            self.optimizer.load_state_dict(saved['optimizer'])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f'{path} is of the training of another model; remove it') from error
        self.step, self.history = saved['step'], saved['history']
        if self.ema is not None:
            self.ema.module.load_state_dict(saved['average'])
        self.scaler.load_state_dict(saved['scaler'])


def _loss_function(
    model: nn.Module, teacher: nn.Module | None, recipe: Recipe
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss by (images, labels); without a teacher the cross-entropy alone."""

    if teacher is None:
        return lambda images, labels: F.cross_entropy(logits_of(model(images)), labels)
    distiller = Distiller(
        model,
        teacher,
        logit_weight=recipe.distill_weight,
        temperature=recipe.temperature,
        features=recipe.features,
    )

    def distilled(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        output, distance = distiller(images)
        if recipe.label_weight:
            distance = distance + recipe.label_weight * F.cross_entropy(logits_of(output), labels)
        return distance

    return distilled


@contextmanager
def _global_rng_restored() -> Iterator[None]:
    """Restore the global generators of torch and ``random`` afterwards."""
    python = random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
