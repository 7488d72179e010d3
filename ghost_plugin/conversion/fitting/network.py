"""Gradient steps of the whole converted network towards the original's outputs, without labels.

Blocks learn one by one, so their errors add up; here all weights learn together. Each step sees
fresh views of calibration images. Outputs of a few hundred images are soon learnt by heart, so the
steps are short, and the state with the least error on images that were held back stays: the
network never ends worse on these than it began.

Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), for the
divergence of predictions.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...utils.modules import call_model, eval_mode
from ..progress import Report
from .batches import channels_last, concat_batches, rebatch
from .divergence import divergence, has_divergence, outputs
from .least_squares import num_held
from .output_gradients import gradients_everywhere
from .paired_forward import observe_activations
from .reconstruction import HOLDOUT_DIVISOR, NUM_EVALS, copied_state
from .views import can_view, random_views

_logger = logging.getLogger(__name__)
LEARNING_RATE = 3e-4  # of Adam, times the root mean square of each tensor of weights
MIN_RMS = 1e-3  # of a tensor of weights; biases may be zero
WARMUP = 0.1  # of the steps; then the rate falls by a cosine
BATCH = 32  # images of a step
PASS_BYTES = 2**29  # of activations of one pass; a step may take several


def reconstruct_network(
    original: nn.Module,
    converted: nn.Module,
    batches: Sequence[Any],
    *,
    steps: int,
    seed: int,
    report: Report,
) -> None:
    """Let a converted network learn the outputs of the original, in place.

    Args:
        original: It stays in eval mode.
        converted: It learns in eval mode, so that norms keep their statistics.
        batches: Calibration batches. One image in eight is held back, the last ones.
        steps: Of Adam.
        seed: Of the choice of images and of their views.
        report: Gets the number of steps.
    """
    images = list(rebatch(batches, 1))
    number = num_held(len(images), HOLDOUT_DIVISOR)
    seen, held = images[: len(images) - number], images[len(images) - number :]
    if not held or not has_divergence(original, held[0]):
        _logger.warning(
            'the outputs of %s for single images cannot be compared, so the whole network does '
            'not learn; its blocks did', type(original).__name__,
        )  # fmt: skip
        return
    size = _images_per_pass(converted, images[0])
    generator = torch.Generator().manual_seed(seed)
    flags = {parameter: parameter.requires_grad for parameter in converted.parameters()}
    rates = {p: LEARNING_RATE * max(MIN_RMS, _rms(p)) for p in flags if p.is_floating_point()}
    groups = [{'params': [parameter], 'lr': rate} for parameter, rate in rates.items()]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    with eval_mode(original), eval_mode(converted):
        with torch.no_grad():
            parts = map(channels_last, _concatenated(held, size))
            judged = [(part, outputs(original, part)) for part in parts]

        @torch.no_grad()
        def error() -> torch.Tensor:
            each = [divergence(outputs(converted, part), wanted) for part, wanted in judged]
            return torch.cat(each).mean()

        best = error()
        state = copied_state(converted)
        try:
            for parameter in rates:
                parameter.requires_grad_(True)
            for step in range(1, steps + 1):
                chosen = torch.randint(len(seen), (BATCH,), generator=generator).tolist()
                optimizer.zero_grad()
                for part in _concatenated([seen[index] for index in chosen], size):
                    part = channels_last(_viewed(part, generator))
                    with torch.no_grad():
                        wanted = outputs(original, part)
                    with torch.enable_grad(), gradients_everywhere(converted):
                        loss = divergence(outputs(converted, part), wanted).sum() / BATCH
                    torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                if step % max(1, steps // NUM_EVALS) == 0:
                    now = error()
                    if now < best:
                        best, state = now, copied_state(converted)
                report('network', step, steps)
        finally:
            converted.load_state_dict(state)
            for parameter, flag in flags.items():
                parameter.grad = None
                parameter.requires_grad_(flag)


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1.0, WARMUP * steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def _rms(parameter: torch.Tensor) -> float:
    return float(parameter.detach().square().mean().sqrt()) if parameter.numel() else 0.0


def _images_per_pass(model: nn.Module, image: Any) -> int:
    sizes: list[int] = []
    with observe_activations(model, sizes.append), eval_mode(model):
        call_model(model, image)
    return max(1, min(BATCH, PASS_BYTES // max(1, 2 * sum(sizes))))


def _concatenated(images: Sequence[Any], size: int) -> list[Any]:
    return [concat_batches(images[start : start + size]) for start in range(0, len(images), size)]


def _viewed(batch: Any, generator: torch.Generator) -> Any:
    if not can_view(batch):
        return batch
    return pytree.tree_map_only(torch.Tensor, lambda images: random_views(images, generator), batch)
