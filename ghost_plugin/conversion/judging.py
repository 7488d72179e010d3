"""Measured divergence of a plan, on images that its fits did not see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..utils.modules import eval_mode
from .apply import measure_plan
from .fitting.batches import can_concat, rebatch
from .fitting.divergence import has_divergence, outputs
from .plan import ConversionPlan

MIN_IMAGES, HELD_SHARE = 32, 0.3  # calibration images, and the share of them that judges plans
IMAGES_AT_A_TIME = 16
# Standard errors that are added to a mean: it is below with 97.5 % confidence. With one of them two
# of six networks were 1.2 and 1.3 times as far off as promised on other images.
NUM_ERRORS = 2
# Outputs of the original that are held; feature maps of a detector have tens of megabytes an image.
OUTPUT_BYTES, MIN_JUDGING = 2**30, 4


class JudgingError(ValueError):
    """Too few calibration images, of several sizes, or outputs that cannot be compared."""


@dataclass(frozen=True)
class Judge:
    """Measures plans of one model.

    Attributes:
        model: The original; it is left as it was.
        fitted, judging: Batches that plans are fitted to, and those that they are compared on.
        wanted: Outputs of the original for the latter.
    """

    model: nn.Module
    fitted: list[Any]
    judging: list[Any]
    wanted: list[list[torch.Tensor]]

    def of_images(self, plan: ConversionPlan) -> torch.Tensor:
        """(images,) divergence of each judging image."""
        return measure_plan(plan, self.model, self.fitted, self.judging, self.wanted).double()

    def divergence(self, plan: ConversionPlan) -> float:
        """Upper bound of the mean divergence, from the judging images."""
        if not any(layer.converts for layer in plan.layers):
            return 0.0
        each = self.of_images(plan)
        return float(each.mean() + NUM_ERRORS * standard_error(each))


def standard_error(each: torch.Tensor) -> float:
    """Standard error of the mean of (n,) values."""
    return float(each.std()) / math.sqrt(len(each))


def make_judge(model: nn.Module, batches: Sequence[Any]) -> Judge:
    """Share calibration images out between fits and judging.

    Args:
        model: The original.
        batches: Calibration batches; the last images judge.

    Raises:
        JudgingError: Too few images, or images of several sizes; a model whose outputs cannot be
            compared.
    """
    images = list(rebatch(batches, 1))
    if len(images) < MIN_IMAGES:
        raise JudgingError(
            f'at least {MIN_IMAGES} calibration images are needed, some of which judge the plans, '
            f'got {len(images)}'
        )
    if not can_concat(batches):
        raise JudgingError('the calibration images must have one size; resize them')
    if not has_divergence(model, images[0]):
        raise JudgingError(
            'outputs can be compared if they are tensors with one entry for each image, and '
            f'{type(model).__name__} gives none; call a part of it, or set macs= instead'
        )
    with torch.no_grad(), eval_mode(model):
        size = sum(leaf.numel() * leaf.element_size() for leaf in outputs(model, images[0]))
    number = min(round(HELD_SHARE * len(images)), max(MIN_JUDGING, OUTPUT_BYTES // size))
    fitted, judging = (
        list(rebatch(part, IMAGES_AT_A_TIME))
        for part in (images[: len(images) - number], images[len(images) - number :])
    )
    with torch.no_grad(), eval_mode(model):
        wanted = [outputs(model, batch) for batch in judging]
    return Judge(model, fitted, judging, wanted)
