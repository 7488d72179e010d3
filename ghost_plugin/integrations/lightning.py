"""Distillation in Lightning that changes gradually: a callback for a Distiller's weights."""

import math
from typing import Any

from ..distillation import Distiller
from ..utils import optional

optional.require('lightning')

import lightning


class DistillationSchedule(lightning.Callback):
    """Multiplies the weights of a Distiller by a factor that changes linearly during training.

    Before ``begin`` the factor is ``first``, behind ``end`` it is ``last``. It depends on the
    training step alone, so a resumed training goes on with it. When training ends, by an error too,
    the Distiller has its own weights again. The teacher moves to the model's device.

    >>> schedule = DistillationSchedule(distiller, first=1, last=0, end=0.5)
    >>> trainer = lightning.Trainer(max_epochs=20, callbacks=[schedule])

    Args:
        distiller: Its ``logit_weight`` and ``feature_weight`` change.
        first, last: Factors, 0 or more.
        begin, end: Where the change begins and ends, as shares of all training steps.

    Raises:
        ValueError: A negative factor; shares that are not in order within 0..1.
    """

    def __init__(
        self,
        distiller: Distiller,
        *,
        first: float = 1.0,
        last: float = 0.0,
        begin: float = 0.0,
        end: float = 1.0,
    ) -> None:
        if not (first >= 0 and last >= 0):
            raise ValueError(f'first and last must be 0 or more, got {first!r} and {last!r}')
        if not 0 <= begin <= end <= 1:
            raise ValueError(
                f'begin and end are shares of the training, 0 <= begin <= end <= 1; got {begin!r} '
                f'and {end!r}'
            )
        self.distiller = distiller
        self.first, self.last, self.begin, self.end = first, last, begin, end
        self._weights = distiller.logit_weight, distiller.feature_weight

    def factor(self, progress: float) -> float:
        """Factor at a share of the training.

        Args:
            progress: Training steps done over all steps.
        """
        if progress >= self.end:
            return self.last
        part = max(0.0, progress - self.begin) / (self.end - self.begin)
        return self.first + part * (self.last - self.first)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Move the teacher, and keep the Distiller's weights.

        Args:
            trainer: Lightning's trainer.
            pl_module: The model.

        Raises:
            ValueError: The trainer has no last step.
        """
        if not math.isfinite(trainer.estimated_stepping_batches):
            raise ValueError(
                'DistillationSchedule needs to know the number of training steps, but the trainer '
                'has no end; give it max_epochs= or max_steps='
            )
        self._weights = self.distiller.logit_weight, self.distiller.feature_weight
        self.distiller.teacher.to(pl_module.device)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        """Set the weights for the next step.

        Args:
            trainer: Lightning's trainer.
            pl_module: The model.
            *batch: The batch and its index, which do not matter.
        """
        factor = self.factor(trainer.global_step / trainer.estimated_stepping_batches)
        self._set(*(weight * factor for weight in self._weights))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Give the Distiller its own weights again.

        Args:
            trainer, pl_module: As for :meth:`on_fit_start`.
        """
        self._set(*self._weights)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the Distiller its own weights again.

        Args:
            trainer, pl_module: As for :meth:`on_fit_start`.
            exception: What ended the training.
        """
        self._set(*self._weights)

    def _set(self, logit_weight: float, feature_weight: float) -> None:
        self.distiller.logit_weight = logit_weight
        self.distiller.feature_weight = feature_weight
