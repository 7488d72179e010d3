"""Settings of a training, and timm's optimizer and learning rate schedule for them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# timm's name of an optimizer: default learning rate and weight decay.
OPTIMIZERS = {'sgd': (0.05, 5e-4), 'adamw': (1e-3, 0.05)}


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
        epochs: Number of epochs, may be a fraction.
        optimizer: A name of :data:`OPTIMIZERS`.
        lr: Highest learning rate; the optimizer's default if None.
        weight_decay: Not for norms and biases; the optimizer's default if None.
        batch: Images per forward pass.
        accumulate: Batches per step.
        warmup: Share of the steps in which the learning rate rises.
        label_weight: Weight of the cross-entropy with the labels.
        distill_weight: Weight of the divergence from the teacher's logits.
        temperature: Divides both logits in the divergence.
        features: Modules whose outputs are compared, as in :class:`ghost_plugin.Distiller`.
        amp: Autocast to bfloat16, or to float16 on a GPU without bfloat16.
        ema: Decay of the averaged weights, which are the result then; 0 for none.
        clip: Largest gradient norm of a step; 0 for no limit.
        seed: Seed of order, augmentation and dropout.
    """

    epochs: float = 1.5
    optimizer: str = 'sgd'
    lr: float | None = None
    weight_decay: float | None = None
    batch: int = 128
    accumulate: int = 1
    warmup: float = 0.05
    label_weight: float = 0.1
    distill_weight: float = 0.9
    temperature: float = 4.0
    features: tuple[str, ...] = ()
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


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer of all parameters that need gradients.

    Args:
        model: Its norms and biases get no weight decay.
        recipe: Optimizer, learning rate and weight decay.
    """
    from timm.optim import create_optimizer_v2

    lr, weight_decay = OPTIMIZERS[recipe.optimizer]
    return create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=lr if recipe.lr is None else recipe.lr,
        weight_decay=weight_decay if recipe.weight_decay is None else recipe.weight_decay,
    )


def create_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> Any:
    """timm's schedule of a linear rise and half a cosine down to 0, for ``step_update(step)``.

    Args:
        optimizer: With the highest learning rate.
        steps: Number of batches of the training.
        warmup: Share of the steps in which the learning rate rises.
    """
    from timm.scheduler import CosineLRScheduler

    rising = round(warmup * steps)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(steps - rising, 2),  # timm warns at 1, where only the first rate counts
        warmup_t=rising,
        warmup_lr_init=optimizer.param_groups[0]['lr'] / (rising + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
