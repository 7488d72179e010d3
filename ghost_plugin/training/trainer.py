"""A plain train loop for classifiers, with or without a teacher, that goes on where it was cut off.

The learning rate rises for a moment and falls along a cosine; everything random comes from the seed
and the epoch, so a run that was interrupted ends like one that was not.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..distillation import Distiller
from ..utils.atomic_io import atomic_write
from ..utils.modules import deepcopy_detached
from ..utils.torch_compat import GradScaler
from .config import Recipe, optimizer_of, scale
from .evaluation import logits_of
from .loader import Batch, ImageLoader, ProgressFn, no_progress

Validate = Callable[[nn.Module], dict[str, float]]


def finetune(
    model: nn.Module,
    feed: ImageLoader,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    state: str | os.PathLike | None = None,
    resume: bool = False,
    validate: Validate | None = None,
    tick: ProgressFn = no_progress,
) -> list[dict[str, float]]:
    """Train a classifier in place.

    Args:
        model: What learns; afterwards it has its averaged weights, if the recipe asks for some.
        feed: The pictures, on the device of both models.
        recipe: How.
        teacher: Runs beside it in eval mode; only labels count without it.
        state: File that holds all that is needed to go on, written after each epoch.
        resume: Go on from that file, if it is there.
        validate: Called after each epoch with the weights that count; its figures come back.
        tick: Shown the steps.

    Returns:
        One dictionary per epoch: ``epoch``, ``loss``, ``seconds`` and what ``validate`` gave.

    Raises:
        ValueError: Nothing to learn from; the state belongs to another recipe or model.
    """
    if feed.pictures.labels is None and (recipe.hard or teacher is None):
        raise ValueError(
            f'{feed.pictures.source} has no class folders; with hard=0 a teacher is enough'
        )
    training = Training(model, recipe, feed, teacher)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        if resume and state is not None and Path(state).exists():
            training.restore(Path(state))
        while training.step < training.steps:
            training.epoch(feed, tick)
            if validate is not None:
                training.history[-1] |= validate(training.result)
            if state is not None:
                save(training.state(), state)
    if training.average is not None:
        model.load_state_dict(training.average.state_dict())
    return training.history


class Training:
    """A model and everything that changes while it learns.

    Attributes:
        step: Batches seen; ``steps`` is where it ends.
        average: Averaged copy of the model, or None.
        history: What the epochs gave.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, feed: ImageLoader, teacher: nn.Module | None
    ) -> None:
        self.model, self.recipe = model, recipe
        self.per_epoch = feed.batches(recipe.batch)
        self.steps = max(round(recipe.epochs * self.per_epoch), 1)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.average = deepcopy_detached(model).eval() if recipe.ema else None
        self.optimizer = optimizer_of(model, recipe)
        self.loss = _loss(model, teacher, recipe)
        self.amp = _Amp(feed.device, recipe.amp)

    @property
    def result(self) -> nn.Module:
        """The model whose weights count."""
        return self.model if self.average is None else self.average

    def epoch(self, feed: ImageLoader, tick: ProgressFn) -> None:
        """Train to the end of the current epoch, or of the training."""
        number = self.step // self.per_epoch
        left = min(self.per_epoch, self.steps - self.step)
        start, total = time.monotonic(), 0.0
        self.model.train()
        batches = islice(feed.shuffled(self.recipe.batch, _mixed(self.recipe.seed, number)), left)
        for group in _grouped(batches, self.recipe.accumulate):
            total += self._update(group)
            mean = total / (self.step - number * self.per_epoch)
            note = f'epoch {number + 1}/{math.ceil(self.recipe.epochs)}, loss {mean:.3f}'
            tick('training', self.step, self.steps, note)
        seconds = time.monotonic() - start
        self.history.append({'epoch': number + 1, 'loss': total / left, 'seconds': seconds})

    def _update(self, group: list[Batch]) -> float:
        """One step of the optimizer; the sum of the batches' losses."""
        rate = self.recipe.rate * scale(self.step, self.steps, self.recipe.warmup)
        for part in self.optimizer.param_groups:
            part['lr'] = rate
        self.optimizer.zero_grad()
        losses = []
        for images, labels in group:
            with self.amp.cast():
                loss = self.loss(images, labels)
            self.amp.scaler.scale(loss / len(group)).backward()
            losses.append(loss.detach())
        self._descend()
        self.step += len(group)
        total = float(torch.stack(losses).sum())
        if not math.isfinite(total):
            raise ValueError(f'the loss is {total} at step {self.step}; try a smaller lr')
        return total

    def _descend(self) -> None:
        if self.recipe.clip:
            self.amp.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.amp.scaler.step(self.optimizer)
        self.amp.scaler.update()
        if self.average is not None:
            # Early on the average forgets faster, or it would stay where training began.
            follow(
                self.average, self.model, min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            )

    def state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            'recipe': asdict(self.recipe),
            'per_epoch': self.per_epoch,
            'step': self.step,
            'history': self.history,
            'model': self.model.state_dict(),
            'average': None if self.average is None else self.average.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.amp.scaler.state_dict(),
            'random': _random_state(),
        }

    def restore(self, path: Path) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            ValueError: It is the state of another training.
        """
        try:
            saved = torch.load(path, map_location='cpu', weights_only=True)
            there = {**saved['recipe'], 'batches an epoch': saved['per_epoch']}
        except Exception as error:  # a foreign file can raise anything
            raise ValueError(f'{path} is not the state of a training; remove it') from error
        here = {**asdict(self.recipe), 'batches an epoch': self.per_epoch}
        other = [key for key in here if there.get(key) != here[key]]
        if other:
            changes = ', '.join(f'{key} {there.get(key)} there, {here[key]} here' for key in other)
            raise ValueError(f'{path} is of another training: {changes}; without resume it is new')
        try:
            self.model.load_state_dict(saved['model'])
        except RuntimeError as error:
            raise ValueError(f'{path} is of the training of another model; remove it') from error
        self.step, self.history = saved['step'], saved['history']
        if self.average is not None:
            self.average.load_state_dict(saved['average'])
        self.optimizer.load_state_dict(saved['optimizer'])
        self.amp.scaler.load_state_dict(saved['scaler'])
        _set_random_state(saved['random'])


class _Amp:
    """Autocast and the scaler that float16 needs; both do nothing when they are off."""

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.kind, self.enabled = device.type, enabled
        half = device.type == 'cuda' and not torch.cuda.is_bf16_supported()
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = GradScaler(enabled=enabled and half)

    def cast(self) -> torch.autocast:
        return torch.autocast(self.kind, self.dtype, enabled=self.enabled)


def _loss(
    model: nn.Module, teacher: nn.Module | None, recipe: Recipe
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def hard(output: Any, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_of(output), labels, label_smoothing=recipe.smoothing)

    if teacher is None:
        return lambda images, labels: hard(model(images), labels)
    distiller = Distiller(
        model,
        teacher,
        logits=recipe.soft,
        temperature=recipe.temperature,
        features=recipe.features,
    )

    def both(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        output, distance = distiller(images)
        return distance + recipe.hard * hard(output, labels) if recipe.hard else distance

    return both


def _mixed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(islice(batches, size)):
        yield group


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move averaged weights towards a model's; what is no fraction (counts, orders) is copied."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _random_state() -> list[torch.Tensor]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *devices]


def _set_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])


def save(content: Any, path: str | os.PathLike) -> None:
    """``torch.save`` that never leaves half a file."""
    try:
        with atomic_write(path) as partial:
            torch.save(content, partial)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(f'cannot write {os.fspath(path)!r}: {error}') from error
