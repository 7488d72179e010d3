"""Whether a few calibration images made a conversion better than none would have."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...utils.modules import call_model, eval_mode, tensors_in
from .paired_forward import batch_size, forward_overrides
from .sequential import FitState, add_shift

MAX_IMAGES = 32  # with more of them the fits are not questioned
MIN_GAIN = 0.1  # share of the error on the calibration images that fits to them must take away
ROUNDING = 1e-4  # error below which there is nothing to choose


def few_images(batches: list[Any]) -> bool:
    """Whether there are so few images that a fit to them has to be questioned."""
    return sum(map(batch_size, batches)) <= MAX_IMAGES


@torch.no_grad()
def misled(
    fit: FitState, learnt: dict[str, nn.Module], plain: FitState, batches: list[Any]
) -> bool:
    """Whether a conversion fitted to few images should give way to one that saw none.

    Args:
        fit: With Ghosts that were fitted to the batches.
        learnt: Parts of the network that learnt to stand in for their originals, by name.
        plain: With Ghosts that have their weights from the kernels alone.
        batches: What ``fit`` was fitted to.

    Returns:
        True where the outputs on the very same images are hardly better for the fits. Never where
        outputs cannot be compared.
    """
    wanted = _outputs(fit.model, {}, batches)
    errors = [
        _error(_outputs(fit.model, forwards, batches), wanted)
        for forwards in (_forwards(fit, learnt), _forwards(plain, {}))
    ]
    return errors[0] > max(ROUNDING, (1 - MIN_GAIN) * errors[1])


def _forwards(fit: FitState, learnt: dict[str, nn.Module]) -> dict[str, Callable]:
    """What runs in the place of each layer: makes it of the layer's own forward."""

    def shifted(name: str, ghost: nn.Module | None) -> Callable:
        def make(forward: Callable) -> Callable:
            def run(*args: Any, **kwargs: Any) -> torch.Tensor:
                output = (ghost or forward)(*args, **kwargs)
                shift = fit.shifts.get(name)
                return output if shift is None else add_shift(output, shift)

            return run

        return make

    blocks = [name for name in learnt if name not in fit.ghosts]
    names = [
        name
        for name in {**fit.ghosts, **fit.shifts}
        if not any(name.startswith(f'{block}.') for block in blocks)
    ]
    forwards = {name: shifted(name, fit.ghosts.get(name)) for name in names}
    return {**forwards, **{name: lambda forward, own=learnt[name]: own for name in blocks}}


def _outputs(
    model: nn.Module, forwards: dict[str, Callable], batches: list[Any]
) -> list[list[torch.Tensor]]:
    with (
        forward_overrides(model, forwards, lambda name, own: forwards[name](own)),
        eval_mode(model),
    ):
        return [
            [t for t in tensors_in(call_model(model, b)) if t.is_floating_point()] for b in batches
        ]


def _error(got: list[list[torch.Tensor]], wanted: list[list[torch.Tensor]]) -> float:
    """Relative error, mean over output tensors; 0 where shapes differ."""
    errors = []
    for parts in zip(zip(*got, strict=False), zip(*wanted, strict=False), strict=False):
        mine, theirs = parts
        if any(a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
            return 0.0
        lost = sum(float((a - b).double().square().sum()) for a, b in zip(*parts, strict=True))
        size = sum(float(b.double().square().sum()) for b in theirs)
        errors.append((lost / max(size, 1e-30)) ** 0.5)
    return sum(errors) / max(1, len(errors))
