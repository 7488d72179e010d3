"""What each conv's Ghost would do to the network's output: scores for a budget.

The harm of a ratio for a conv is c e^p, where e is the relative error of the conv's maps, and c is
how much the output moves for that error when only this conv changes: E[(g d)^2] / e, with the error
d of the maps and the gradient g of a random projection of the output, which one backward pass gives
for all convs at once. What a fit can mend differs by conv, so with pictures one Ghost of each conv
is refitted to the original's maps first, and the others' errors are taken to fall as its did.

Harms are added up, and the power above 1 is for what they do together: later convs are fitted to
what they get, which mends small errors and not large ones. Measured on EfficientNet-Lite0 at 90 %
of its multiply-adds, 350 calibration pictures, before any training, as divergence from the
original's predictions on 150 others: 0.07 to 0.09 with p = 1.25, 0.08 with 1.5, 0.11 with 1 and
0.12 with 2; without the refit 0.12. ResNet-20 is alike with 1.25 and 1.5, and worse with 1.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..utils.modules import call_model, eval_mode, removing_hooks
from .fitting.batches import batch_size, can_concat, rebatch, slice_batch
from .fitting.channel_statistics import ChannelMoments, moments_from_weights
from .fitting.initialization import filter_size
from .fitting.least_squares import shared_mean
from .fitting.microbatch_scheduler import run_microbatches
from .fitting.output_gradients import (
    IMAGES_PER_CALL,
    GradientHandler,
    GradientProbe,
    UnconnectedError,
    backprop_projections,
)
from .fitting.paired_forward import ActivationBatch, Forward, ModuleVisitor
from .fitting.sequential import (
    ACTIVATION_BYTES,
    FitTask,
    LayerFit,
    collect_moments,
    ghost_visitor,
)
from .layer_plan import LayerPlan
from .surgery import build_ghosts

POWER = 1.25  # of the error
DRAWS = 32  # of projections, over all images, and at least
MIN_DRAWS = 4  # for each image
PICTURES = 64  # looked at for the output at the most
NOISE_IMAGES = 8  # that stand for images where there are none, or stand beside few
TINY = 1e-12  # error of a Ghost that loses nothing
REFERENCE = 2.0  # ratio at which the output is looked at, or the one next to it


def score(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    ratios: Mapping[str, Sequence[float]],
    example_input: Any,
    calibration: Sequence[Any] | None,
    seed: int,
) -> None:
    """Fill in the scores of ``rows``; those that the output does not depend on stay.

    Args:
        model: The original; it is left as it was.
        rows: Of a plan.
        ratios: To score, by the row's name.
        example_input: What the model is called with; noise of its kind stands for data.
        calibration: Batches of pictures, if there are any.
        seed: Of projections and noise.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = None if calibration is None else _with_noise(calibration, example_input)
        tasks, first = _initialize(model, rows, ratios, batches, seed)
        parts = list(_parts(batches or _noise(example_input)))
        errors = {
            name: {ratio: first[ratio][name] or TINY for ratio in sorted(own)}
            for name, own in ratios.items()
        }
        reference = {
            name: min((abs(r - REFERENCE), r) for r in own)[1] for name, own in ratios.items()
        }
        after = {name: first[ratio][name] or TINY for name, ratio in reference.items()}
        if batches and can_concat(parts):
            after |= _refit(model, tasks, first, reference, parts)
        ghosts = {name: tasks[ratio].ghosts[name] for name, ratio in reference.items()}
        moved = _moved(model, rows, ghosts, parts)
    for row in rows:
        if row.name in ratios and row.name not in moved:
            row.decision, row.reason = 'keep', 'no_gradient'
        elif row.name in ratios:
            ratio = reference[row.name]
            mended = after[row.name] / errors[row.name][ratio]
            row.scores = _scores(errors[row.name], mended, moved[row.name] / after[row.name])


def _scores(errors: Mapping[float, float], mended: float, weight: float) -> dict[str, float]:
    """By ratio; a higher ratio never has the lower score."""
    scores, worst = {}, 0.0
    for ratio, error in errors.items():
        worst = max(worst, weight * (mended * error) ** POWER)
        scores[f'{ratio:g}'] = worst
    return scores


def _initialize(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    ratios: Mapping[str, Sequence[float]],
    batches: Sequence[Any] | None,
    seed: int,
) -> tuple[dict[float, FitTask], dict[float, dict[str, float]]]:
    """All Ghosts of every ratio with their first weights, and the errors of these by name."""
    norms = {row.name: row.norm for row in rows}
    tasks = {}
    for ratio in sorted({ratio for own in ratios.values() for ratio in own}):
        settings = {
            row.name: {**row.settings, 'ratio': ratio}
            for row in rows
            if ratio in ratios.get(row.name, ())
        }
        tasks[ratio] = FitTask(model, build_ghosts(model, settings, seed), norms)
    sizes = {n: filter_size(ghost) for task in tasks.values() for n, ghost in task.ghosts.items()}
    errors: dict[float, dict[str, float]] = {ratio: {} for ratio in tasks}
    for name, moments in _statistics(model, sizes, batches):
        for ratio, task in tasks.items():
            if name in task.ghosts:
                errors[ratio][name] = task.initialize(name, moments)
    return tasks, errors


def _refit(
    model: nn.Module,
    tasks: Mapping[float, FitTask],
    first: Mapping[float, Mapping[str, float]],
    reference: Mapping[str, float],
    parts: list[Any],
) -> dict[str, float]:
    """Fit one Ghost of each conv to the original's output, on the original's own inputs."""
    visitors = {
        name: _dense(ghost_visitor(tasks[ratio], name, first[ratio][name]))
        for name, ratio in reference.items()
    }
    fits = run_microbatches(model, parts, visitors, ACTIVATION_BYTES)
    return {name: fit.error or TINY for name, fit in fits.items()}


def _dense(fitted: ModuleVisitor[LayerFit]) -> ModuleVisitor[LayerFit]:
    """Visitor that fits, and returns the original's output for both models."""

    def visit(
        forward: Forward, old: ActivationBatch, new: ActivationBatch, fit: LayerFit | None
    ) -> tuple[Any, Any, LayerFit]:
        wanted, _, fit = fitted(forward, old, old, fit)
        return wanted, wanted, fit

    return visit


def _statistics(
    model: nn.Module, sizes: Mapping[str, int], batches: Sequence[Any] | None
) -> Iterator[tuple[str, ChannelMoments]]:
    if batches:
        return collect_moments(model, sizes, list(batches))
    return (
        (name, moments_from_weights(model.get_submodule(name), size))
        for name, size in sizes.items()
    )


def _with_noise(calibration: Sequence[Any], example_input: Any) -> list[Any]:
    """Batches, and beside few images so much noise that a plan does not hang on one of them."""
    batches = list(calibration)
    for noise in _noise(example_input):
        if sum(map(batch_size, batches)) >= NOISE_IMAGES or not can_concat([*batches, noise]):
            break
        batches.append(noise)
    return batches


def _noise(example_input: Any) -> list[Any]:
    """Normal noise in the place of every floating tensor of the example, some images of it."""

    def noise(leaf: Any) -> Any:
        real = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return torch.randn_like(leaf) if real else leaf

    return [pytree.tree_map(noise, example_input) for _ in range(NOISE_IMAGES)]


def _moved(
    model: nn.Module,
    rows: Sequence[LayerPlan],
    ghosts: Mapping[str, nn.Module],
    parts: Sequence[Any],
) -> dict[str, float]:
    """Mean square of what each Ghost alone moves in the output, to first order; by gradients."""
    totals: dict[str, float] = {}
    ghosts = {name: ghost.eval() for name, ghost in ghosts.items()}
    number = sum(map(batch_size, parts))
    draws = max(MIN_DRAWS, -(-DRAWS // number))
    means = _mean_gaps(model, {row.name: ghosts[row.name] for row in rows if row.norm
                               and row.name in ghosts}, parts)  # fmt: skip
    listeners = {
        name: _listener(name, ghost, totals, means.get(name)) for name, ghost in ghosts.items()
    }
    try:
        backprop_projections(model, listeners, parts, draws)
    except UnconnectedError as error:
        raise ValueError(
            f'{error}, so a budget cannot score them: give a part of the model, or ratios by '
            'pattern'
        ) from error
    return {name: value / (number * draws) for name, value in totals.items()}


def _mean_gaps(
    model: nn.Module, ghosts: Mapping[str, nn.Module], parts: Sequence[Any]
) -> dict[str, torch.Tensor]:
    """What the norm behind each conv can take back of what its Ghost changes.

    Args:
        model: The original.
        ghosts: By the names of convs with a norm behind.
        parts: Batches.

    Returns:
        (C, 1, 1) by name: the mean change of each channel, as far as images agree about it.
    """
    found: dict[str, list[torch.Tensor]] = defaultdict(list)

    def hook(name: str) -> Callable:
        def seen(module: nn.Module, inputs: tuple, maps: torch.Tensor) -> None:
            found[name].append((ghosts[name](inputs[0]) - maps).mean((2, 3)))

        return seen

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in ghosts]
    with removing_hooks(*handles), eval_mode(model):
        for part in parts:
            call_model(model, part)
    return {name: shared_mean(torch.cat(own))[:, None, None] for name, own in found.items()}


def _parts(batches: Sequence[Any]) -> Iterator[Any]:
    """A few pictures at a time, not too many in all, of every batch its share."""
    share = max(1, -(-PICTURES // len(batches)))
    for batch in batches:
        yield from rebatch([slice_batch(batch, slice(share))], IMAGES_PER_CALL)


def _listener(
    name: str, ghost: nn.Module, totals: dict[str, float], mean: torch.Tensor | None
) -> GradientProbe:
    """Adds (g d)^2 of each image when the gradient comes; d is less ``mean``, (C, 1, 1)."""

    def listener(module: nn.Module, inputs: tuple, maps: torch.Tensor) -> GradientHandler:
        with torch.no_grad():
            gap = ghost(inputs[0]) - maps - (0 if mean is None else mean)

        def add(gradient: torch.Tensor) -> None:
            totals[name] = totals.get(name, 0.0) + float(
                (gradient * gap).flatten(1).sum(1).square().sum()
            )

        return add

    return listener
