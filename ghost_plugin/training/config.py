"""How a classifier is trained: the settings, the optimizer, the learning rate over time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: May be a fraction.
        optimizer: A name of :data:`OPTIMIZERS`.
        lr: Highest learning rate; that of the optimizer without it.
        weight_decay: Of everything but norms and biases; that of the optimizer without it.
        batch: Pictures per forward pass.
        accumulate: Batches per step.
        warmup: Share of the steps in which the learning rate rises.
        hard: Weight of the cross-entropy with the labels.
        soft: Weight of the divergence from the teacher's logits.
        temperature: Of both logits in it.
        features: Modules whose maps are compared, as in :class:`ghost_plugin.Distiller`.
        smoothing: Of the labels.
        amp: Autocast to bfloat16, or float16 where a GPU has no other.
        ema: Decay of averaged weights, which are the result then; 0 for none.
        clip: Largest norm of a step's gradients; 0 for any.
        seed: Of order, augmentation and dropout.
    """

    epochs: float = 1.5
    optimizer: str = 'sgd'
    lr: float | None = None
    weight_decay: float | None = None
    batch: int = 128
    accumulate: int = 1
    warmup: float = 0.05
    hard: float = 0.1
    soft: float = 0.9
    temperature: float = 4.0
    features: tuple[str, ...] = ()
    smoothing: float = 0.0
    amp: bool = False
    ema: float = 0.0
    clip: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ('epochs', 'batch', 'accumulate'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} must be above 0, got {getattr(self, name)}')
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f'optimizer must be one of {list(OPTIMIZERS)}, got {self.optimizer!r}')
        if not 0 <= self.ema < 1:
            raise ValueError(f'ema must be 0 or more and below 1, got {self.ema}')

    @property
    def rate(self) -> float:
        """Highest learning rate."""
        return OPTIMIZERS[self.optimizer].lr if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """Weight decay."""
        return (
            OPTIMIZERS[self.optimizer].weight_decay
            if self.weight_decay is None
            else self.weight_decay
        )


@dataclass(frozen=True)
class Kind:
    """An optimizer and its usual settings."""

    build: Callable[..., torch.optim.Optimizer]
    lr: float
    weight_decay: float
    options: dict[str, Any] = field(default_factory=dict)


OPTIMIZERS = {
    'sgd': Kind(torch.optim.SGD, 0.05, 5e-4, {'momentum': 0.9, 'nesterov': True}),
    'adamw': Kind(torch.optim.AdamW, 1e-3, 0.05),
}


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of all parameters that are learnt; norms and biases do not decay."""
    kind = OPTIMIZERS[recipe.optimizer]
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {'params': [p for p in learnt if p.ndim > 1], 'weight_decay': recipe.decay},
        {'params': [p for p in learnt if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    return kind.build([g for g in groups if g['params']], lr=recipe.rate, **kind.options)


def scale(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate: a line up, half a cosine down."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
