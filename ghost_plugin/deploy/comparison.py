"""Differences between outputs of two forms of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.modules import call_model, deepcopy_detached
from .flat_io import TensorIO, not_outputs, tensors


@dataclass(frozen=True)
class Difference:
    """Difference of outputs from reference outputs.

    Attributes:
        absolute: Largest difference of an element.
        relative: Largest difference of an element, divided by the largest absolute value of its
            reference tensor.
        typical: Root mean square of the difference, divided by that of the reference; the worst
            tensor counts.
    """

    absolute: float = 0.0
    relative: float = 0.0
    typical: float = 0.0

    def __or__(self, other: 'Difference') -> 'Difference':
        """Return the worse of each figure."""
        return Difference(
            max(self.absolute, other.absolute),
            max(self.relative, other.relative),
            max(self.typical, other.typical),
        )


def differences(got: Any, want: Any) -> Difference:
    """Compare nested outputs; other shapes and non-finite values count as infinite.

    Args:
        got: Outputs.
        want: Reference outputs.

    Raises:
        TypeError: There is no tensor to compare.
    """
    worst, wanted = Difference(), tensors(want)
    if not wanted:
        raise not_outputs(want)
    for a, b in zip(tensors(got), wanted, strict=True):
        worst |= _tensor_difference(a.detach(), b.detach())
    return worst


def _tensor_difference(got: torch.Tensor, want: torch.Tensor) -> Difference:
    infinite = Difference(*[float('inf')] * 3)
    if got.shape != want.shape:
        return infinite
    if not want.numel():
        return Difference()
    got, want = got.double().cpu(), want.double().cpu()
    gap = (got - want).abs()
    if not torch.isfinite(gap).all():
        return Difference() if torch.equal(got, want) else infinite
    largest = want.abs().max().clamp_min(1e-30)
    rms = want.square().mean().sqrt().clamp_min(1e-30)
    worst = gap.max()
    return Difference(
        worst.item(), (worst / largest).item(), (gap.square().mean().sqrt() / rms).item()
    )


def float32_tolerance(model: TensorIO, inputs: Sequence[torch.Tensor], tolerance: float) -> float:
    """Raise a tolerance where float32 itself loses more, as in untrained networks.

    Args:
        model: In float32.
        inputs: Its input tensors.
        tolerance: Allowed difference, relative to the largest value of an output.

    Returns:
        ``tolerance``, or ten times the difference between float32 and float64 if that is larger,
        at most 0.01.
    """
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    try:
        with torch.no_grad():
            copy = deepcopy_detached(model.model, share=True).double()
            exact = TensorIO(copy, model.inputs.with_tensors(wide))
            lost = differences(
                call_model(model, tuple(inputs)), call_model(exact, tuple(wide))
            ).relative
    except Exception:  # some networks do not support float64
        return tolerance
    return max(tolerance, min(10 * lost, 0.01))
