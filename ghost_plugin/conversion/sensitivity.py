"""Stage 3: sensitivity analysis, a score per conv and ratio that a budget can add up.

The loss increase of a ratio for a conv is c e^p, where e is the relative error of the conv's
output, and c is how much the network's output changes for that error when only this conv changes:
E[(g d)^2] / e, with the error d of the feature maps and the gradient g of a random projection of
the output, which one backward pass gives for all convs at once. How much of an error a fit removes
differs by conv, so with images one Ghost of each conv is fitted to the original's feature maps
first, and the other ratios' errors are assumed to fall by the same factor.

Scores are added up, and the power above 1 is for their joint effect: later convs are fitted to the
inputs that they get, which removes small errors and not large ones. Measured on EfficientNet-Lite0
at 90 % of its multiply-adds, 350 calibration images, before any training, as divergence from the
original's predictions on 150 others: 0.07 to 0.09 with p = 1.25, 0.08 with 1.5, 0.11 with 1 and
0.12 with 2; without the fit 0.12. ResNet-20 is alike with 1.25 and 1.5, and worse with 1.

With images the layers behind a converted one are refitted to what reaches them, and each takes back
a part of its error, so an early conv counts less than a late one. Divergence at 80 % of the
multiply-adds where each takes back 0, 3 and 6 %: EfficientNet-Lite0 0.150, 0.117 and 0.107 (200
calibration images, 300 others; at 90 % 0.024, 0.026 and 0.026); MobileNetV2 of width 0.35 on digits
0.071, 0.069 and 0.111; RegNetX-200MF on digits at 50 % 0.012, 0.011 and 0.011. To choose by
measuring on some calibration images gained nothing: in a fold of Lite0 it left 0.131 on others
where 3 % left 0.110.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..utils.modules import eval_mode, partial_calls, removing_hooks
from .fitting.batches import batch_size, can_concat, rebatch, slice_batch
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
from .fitting.variant_errors import VariantErrors
from .plan import LayerPlan
from .progress import Report, silent, tracked
from .surgery import build_ghosts
from .variants import Variant

POWER = 1.25  # exponent of the error
NUM_PROJECTIONS = 32  # random projections of the output over all images, at least
MIN_PROJECTIONS = 4  # for each image
MAX_IMAGES = 64  # images that the output is observed on, at most
NOISE_IMAGES = 8  # noise in place of images, or beside few
MIN_ERROR = 1e-12  # error of a Ghost that loses nothing
TAKEN_BACK = 0.03  # of an error, by each conv behind that is refitted
MIN_COUNTED = 0.05  # of a score that remains with many convs behind
REFERENCE = 2.0  # the ratio nearest to this is the one whose effect on the output is measured


def score(
    model: nn.Module,
    layers: Sequence[LayerPlan],
    variants: Mapping[str, Sequence[Variant]],
    example_input: Any,
    calibration: Sequence[Any] | None,
    seed: int,
    report: Report = silent,
) -> tuple[LayerPlan, ...]:
    """Score variants of layers.

    Args:
        model: The original; it is left as it was.
        layers: Layers of a plan.
        variants: What to score, by the layer's name.
        example_input: Input of the model; noise of its kind stands for data.
        calibration: Batches of images, if there are any.
        seed: Seed of projections and noise.
        report: Gets the events of the stages.

    Returns:
        The layers with scores; those that the output does not depend on are kept.
    """
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = None if calibration is None else _with_noise(calibration, example_input)
        reference = {
            name: min(own, key=lambda v: (v.group_size not in (None, 1), abs(v.ratio - REFERENCE)))
            for name, own in variants.items()
        }
        scored = [layer for layer in layers if layer.name in variants]
        settings = {row.name: reference[row.name].settings(row.settings) for row in scored}
        norms = {layer.name: layer.norm for layer in layers}
        task = FitTask(
            model, build_ghosts(model, settings, seed), norms, repair=False, report=report
        )
        errors = _initialize(task, scored, variants, reference, batches)
        fitted = {name: errors[name][variant] for name, variant in reference.items()}
        parts = list(_parts(batches or _noise(example_input)))
        if batches and can_concat(parts):
            visitors = {
                name: _on_original_inputs(ghost_visitor(task, name, LayerFit(error)))
                for name, error in fitted.items()
            }
            fits = run_microbatches(
                model, parts, visitors, ACTIVATION_BYTES, partial(report, 'trial fits')
            )
            fitted |= {name: fit.error or MIN_ERROR for name, fit in fits.items()}
        changes = _output_changes(task, parts)

    def with_scores(layer: LayerPlan, behind: int) -> LayerPlan:
        name = layer.name
        if name not in variants:
            return layer
        if name not in changes:
            return layer.keep('no_gradient')
        remaining = fitted[name] / errors[name][reference[name]]
        counted = 1.0 if calibration is None else max(MIN_COUNTED, (1 - TAKEN_BACK) ** behind)
        weight = counted * changes[name] / fitted[name]
        return replace(layer, scores=_scores(errors[name], remaining, weight))

    last = len(layers) - 1
    return tuple(with_scores(layer, last - index) for index, layer in enumerate(layers))


def _scores(errors: Mapping[Variant, float], remaining: float, weight: float) -> dict[str, float]:
    """Scores by the variant's key; of like ones a higher ratio never has the lower score.

    Args:
        errors: Errors before a fit, sorted by ratio.
        remaining: Share of an error that a fit leaves.
        weight: Change of the output per error.
    """
    scores: dict[str, float] = {}
    worst: dict[Any, float] = {}
    for variant, error in errors.items():
        kind = variant.dw_size, variant.group_size
        worst[kind] = max(worst.get(kind, 0.0), weight * (remaining * error) ** POWER)
        scores[variant.key] = worst[kind]
    return scores


def _initialize(
    task: FitTask,
    layers: Sequence[LayerPlan],
    variants: Mapping[str, Sequence[Variant]],
    reference: Mapping[str, Variant],
    batches: Sequence[Any] | None,
) -> dict[str, dict[Variant, float]]:
    """Give the Ghosts of ``task`` first weights, and return the errors of all variants by name."""
    sizes = {layer.name: filter_size(task.ghosts[layer.name]) for layer in layers}
    by_name = {layer.name: layer for layer in layers}
    errors: dict[str, dict[Variant, float]] = {}
    statistics = collect_moments(task.model, sizes, batches, task.report)
    for name, moments in tracked(statistics, len(sizes), task.report, 'scores'):
        layer, first = by_name[name], task.initialize(name, moments)
        trials = {sizes[name]: VariantErrors(moments, layer.shape.groups)}  # by the filters' size
        errors[name] = {}
        for variant in sorted(variants[name], key=lambda one: one.ratio):
            if variant == reference[name]:
                errors[name][variant] = first or MIN_ERROR
                continue
            own = variant.settings(layer.settings)
            size = {'depthwise': own['dw_size'], 'linear': 1, 'shift': 3}[own['cheap']]
            if size not in trials:
                near = moments.without_neighbours()
                trials[size] = VariantErrors(near, layer.shape.groups)
            layout, fitted = layer.shape.layout(own), own['cheap'] != 'shift'
            errors[name][variant] = trials[size].error(layout, fitted=fitted) or MIN_ERROR
    return errors


def _on_original_inputs(visitor: ModuleVisitor[LayerFit]) -> ModuleVisitor[LayerFit]:
    """A visitor that fits to the original's inputs, and gives both networks its outputs."""

    def _visit(
        forward: Forward, old: ActivationBatch, new: ActivationBatch, fit: LayerFit | None
    ) -> tuple[Any, Any, LayerFit]:
        wanted, _, fit = visitor(forward, old, old, fit)
        return wanted, wanted, fit

    return _visit


def _with_noise(calibration: Sequence[Any], example_input: Any) -> list[Any]:
    """Batches, and beside few images so much noise that no plan depends on one of them."""
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


def _output_changes(task: FitTask, parts: Sequence[Any]) -> dict[str, float]:
    """Mean squared change of the output by each Ghost alone, to first order, by gradients."""
    totals: dict[str, float] = {}
    ghosts = {name: ghost.eval() for name, ghost in task.ghosts.items()}
    images = sum(map(batch_size, parts))
    projections = max(MIN_PROJECTIONS, -(-NUM_PROJECTIONS // images))
    with_norm = {name: ghost for name, ghost in ghosts.items() if task.norms[name]}
    means = _mean_gaps(task.model, with_norm, parts) if with_norm else {}
    probes = {name: _probe(name, ghost, totals, means.get(name)) for name, ghost in ghosts.items()}
    try:
        shown = tracked(parts, len(parts), task.report, 'output changes')
        backprop_projections(task.model, probes, shown, projections)
    except UnconnectedError as error:
        raise ValueError(
            f'{error}, so a budget cannot score them: give a part of the model, or ratios by '
            'pattern'
        ) from error
    return {name: value / (images * projections) for name, value in totals.items()}


def _mean_gaps(
    model: nn.Module, ghosts: Mapping[str, nn.Module], parts: Sequence[Any]
) -> dict[str, torch.Tensor]:
    """The part of each Ghost's change that the norm behind can take back.

    Args:
        model: The original.
        ghosts: Ghosts by the names of convs with a norm behind.
        parts: Batches.

    Returns:
        (C, 1, 1) by name: the mean change of each channel, as far as images agree about it.
    """
    found: dict[str, list[torch.Tensor]] = defaultdict(list)

    def hook(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def _hook(module: nn.Module, inputs: Any, maps: torch.Tensor) -> None:
            found[name].append((ghosts[name](inputs[0]) - maps).mean((2, 3)))

        return _hook

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in ghosts]
    with removing_hooks(*handles), eval_mode(model), partial_calls(model, ghosts) as call:
        for part in parts:
            call(part)
    return {name: shared_mean(torch.cat(own))[:, None, None] for name, own in found.items()}


def _parts(batches: Sequence[Any]) -> Iterator[Any]:
    """A few images at a time, at most ``MAX_IMAGES`` or one of each batch, of every batch alike."""
    share = max(1, -(-MAX_IMAGES // len(batches)))
    for batch in batches:
        yield from rebatch([slice_batch(batch, slice(share))], IMAGES_PER_CALL)


def _probe(
    name: str, ghost: nn.Module, totals: dict[str, float], mean: torch.Tensor | None
) -> GradientProbe:
    """Adds (g d)^2 of each image when the gradient comes; d is less ``mean``, (C, 1, 1)."""

    def _on_output(module: nn.Module, inputs: Any, maps: torch.Tensor) -> GradientHandler:
        with torch.no_grad():
            gap = ghost(inputs[0]) - maps - (0 if mean is None else mean)

        def add(gradient: torch.Tensor) -> None:
            totals[name] = totals.get(name, 0.0) + float(
                (gradient * gap).flatten(1).sum(1).square().sum()
            )

        return add

    return _on_output
