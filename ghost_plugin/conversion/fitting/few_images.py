"""Check that a few calibration images made a conversion better than none would have."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...utils.modules import call_model, eval_mode, tensors_in
from .batches import batch_size
from .paired_forward import Forward, forward_overrides
from .sequential import FitResults, FitTask, LayerFit, add_shift

MAX_IMAGES = 32  # with more of them the fits are not questioned
MIN_GAIN = 0.1  # share of the error on the calibration images that fits to them must take away
ROUNDING_ERROR = 1e-4  # relative error below which there is nothing to choose


def few_images(batches: Sequence[Any]) -> bool:
    """Say if there are so few images that a fit to them has to be questioned."""
    return sum(map(batch_size, batches)) <= MAX_IMAGES


@torch.no_grad()
def misled(task: FitTask, results: FitResults, plain: FitTask, batches: Sequence[Any]) -> bool:
    """Say if a conversion fitted to few images should give way to one that saw none.

    Args:
        task: With Ghosts that were fitted to the batches.
        results: Of these fits.
        plain: With Ghosts that have their weights from the dense kernels alone.
        batches: The calibration batches.

    Returns:
        True if the outputs on the very same images are hardly better for the fits; False if
        outputs cannot be compared.
    """
    wanted = list(converted_outputs(FitTask(task.model, {}, {}), FitResults(), batches))
    fitted, unfitted = (
        _error(list(converted_outputs(*conversion, batches)), wanted)
        for conversion in ((task, results), (plain, FitResults()))
    )
    return fitted > max(ROUNDING_ERROR, (1 - MIN_GAIN) * unfitted)


def converted_outputs(
    task: FitTask, results: FitResults, batches: Sequence[Any]
) -> Iterator[list[torch.Tensor]]:
    """Outputs of a conversion, without making the converted model.

    The model itself must not be called before the last batch has been yielded.

    Args:
        task: With fitted Ghosts.
        results: Of the fits.
        batches: What to call it with.

    Yields:
        Floating tensors for each batch.
    """

    def _override(name: str, forward: Forward) -> Forward:
        if name in results.blocks:
            return results.blocks[name]
        fit = results.layers.get(name, LayerFit())
        layer = task.ghosts.get(name, fit.refitted or forward)
        return lambda *args, **kwargs: add_shift(layer(*args, **kwargs), fit.shift)

    outside = [
        name
        for name in {**task.ghosts, **results.layers}
        if not any(name.startswith(f'{block}.') for block in results.blocks)
    ]
    with (
        forward_overrides(task.model, {**dict.fromkeys(outside), **results.blocks}, _override),
        eval_mode(task.model),
    ):
        for batch in batches:
            with torch.no_grad():
                found = call_model(task.model, batch)
            yield [t for t in tensors_in(found) if t.is_floating_point()]


def _error(got: list[list[torch.Tensor]], wanted: list[list[torch.Tensor]]) -> float:
    """Relative error, mean over output tensors; 0 where shapes differ."""
    errors = []
    for mine, theirs in zip(zip(*got, strict=False), zip(*wanted, strict=False), strict=False):
        if any(a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
            return 0.0
        lost = sum(
            float((a - b).double().square().sum()) for a, b in zip(mine, theirs, strict=True)
        )
        energy = sum(float(b.double().square().sum()) for b in theirs)
        errors.append(math.sqrt(lost / max(energy, 1e-30)))
    return sum(errors) / max(1, len(errors))
