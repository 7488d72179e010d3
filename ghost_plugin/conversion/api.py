"""Plan and convert a model: inspect, select, score, allocate, fit, replace."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from ..profiling import count
from ..utils.modules import plain_forward
from .apply import apply_plan
from .budget import candidate_variants, meet_budget, undecided_layers
from .divergence_budget import meet_divergence
from .fitting.batches import as_batches, batch_size
from .inspection import inspect_convs
from .latency_budget import meet_latency
from .layer_latency import PrepareFn, latency_backend_fn
from .plan import NUM_STEPS, SETTINGS, ConversionPlan, fingerprint
from .progress import ProgressFn, Report, reporting
from .selection import select
from .sensitivity import score
from .variants import Variant


@plain_forward()
def plan(
    model: nn.Module,
    example_input: Any,
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
    latency: float | str | None = None,
    latency_backend: str | PrepareFn = 'eager',
    max_divergence: float | None = None,
    calibration: Iterable[Any] | None = None,
    ratio: float = SETTINGS['ratio'],
    dw_size: int | None = None,
    cheap: str = SETTINGS['cheap'],
    group_size: int | str | None = None,
    include: Any = None,
    exclude: Any = None,
    keep_first: bool = True,
    keep_last: bool = True,
    seed: int = 0,
    progress: ProgressFn | Literal[False] | None = None,
    ready: PrepareFn | None = None,
) -> ConversionPlan:
    """Plan a conversion; the model is not touched, and no data is needed.

    Args:
        model, example_input: A network and its input: a tensor, a tuple of arguments or a mapping
            of keyword arguments.
        macs, params: Budgets, as a share of the model's (0.6) or an amount (``'240M'``): ratios
            with the least estimated change of the output are then chosen per conv, and kernel and
            group sizes with them where none are given, from
            :func:`ghost_plugin.conversion.variants.automatic_variants`. Never exceeded.
        latency: A budget as a share of the model's own on this machine, or an amount (``'5ms'``):
            convs are timed, those whose Ghost is slower stay, and the plan is measured at the end.
            Kernel and group sizes are chosen, too, and convs whose outputs a shortcut adds get
            one setting. Beside another budget it only raises the ratios that this has chosen.
        latency_backend: Runs the modules that ``latency`` times: ``'eager'``, ``'onnxruntime'``
            and so on, the backends of :func:`ghost_plugin.optimize` that run single layers; or a
            function that takes a module and its input and gives a call.
        max_divergence: A budget of error: the fewest multiply-adds whose divergence from the
            model's outputs stays below, as measured on calibration images that are held back, for
            ``apply`` with the calibration images. See
            :mod:`ghost_plugin.conversion.fitting.divergence`; it goes with no other budget.
        calibration: Batches to score convs on for a budget; noise of the example's kind without,
            and beside fewer than eight images.
        ratio, dw_size, cheap: Settings of all Ghost convs where ``include`` gives no others:
            output channels per primary channel, size of the cheap kernels in pixels, and
            ``'depthwise'``, ``'shift'`` or ``'linear'``. Without a budget ``dw_size`` is 3 and
            ``group_size`` 1, as in the paper.
        group_size: One more of these settings: the number of primary channels that each ghost
            mixes, or ``'all'``. Convs with groups or with fewer primary channels are kept.
        include, exclude, keep_first, keep_last: Patterns of convs to convert or keep, as in
            :func:`ghost_plugin.conversion.selection.select`.
        seed: Seed of fresh weights, and of random projections for scores.
        progress: Shows how far it is: None a line on a terminal, with the time left, and
            nothing elsewhere; False nothing; or a function that gets each
            :class:`ghost_plugin.conversion.progress.Progress`. An error that it raises ends
            the planning.
        ready: Deprecated, use ``latency_backend``.

    Returns:
        The plan. With a budget its layers have scores, so that
        :meth:`ghost_plugin.ConversionPlan.rebudget` finds plans for other targets without measuring
        again.

    Raises:
        ValueError: A pattern matches no conv; a budget cannot be met; ``calibration`` without a
            batch; ``latency_backend`` without ``latency``, or an unknown one; ``max_divergence``
            with another budget, without calibration, or one that no conversion keeps.
        TypeError: A setting of a wrong type, or a model wrapped in another.
    """
    if ready is not None:
        warnings.warn('ready= is deprecated, use latency_backend=', FutureWarning, stacklevel=3)
        latency_backend = ready
    prepare = latency_backend_fn(latency_backend)
    if latency is None and latency_backend != 'eager':
        raise ValueError(
            'latency_backend (--latency-backend) runs what latency (--latency) measures, and no '
            'latency was given; give one, such as 0.8, or leave latency_backend out'
        )
    budgets = {'macs': macs, 'params': params, 'latency': latency}
    if max_divergence is not None:
        if given := [name for name, budget in budgets.items() if budget is not None]:
            raise ValueError(f'max_divergence goes with no other budget, got {given}')
        if calibration is None or not 0 < max_divergence < math.inf:
            raise ValueError(
                'max_divergence must be above 0, such as 0.05, and needs calibration images '
                f'(--data) to measure with; got {max_divergence!r}'
                + (' and no calibration' if calibration is None else '')
            )
    if isinstance(example_input, list):
        example_input = tuple(example_input)
    selection = select(
        model,
        inspect_convs(model, example_input),
        ratio=ratio,
        dw_size=SETTINGS['dw_size'] if dw_size is None else dw_size,
        cheap=cheap,
        group_size=SETTINGS['group_size'] if group_size is None else group_size,
        include=include,
        exclude=exclude,
        keep_first=keep_first,
        keep_last=keep_last,
    )
    automatic: frozenset[str] = frozenset()
    timed = latency is not None and macs is None and params is None
    is_open = dw_size is None and group_size is None and cheap == 'depthwise'
    if is_open and (timed or latency is None):
        names = {layer.name for layer in selection.layers if layer.shape.groups == 1}
        automatic = frozenset(names - selection.with_settings)
    cost = count(model, example_input)
    made = ConversionPlan(
        model=type(model).__name__,
        fingerprint=fingerprint(model),
        layers=selection.layers,
        params=cost.params,
        macs=cost.macs // max(1, batch_size(example_input)),
        seed=seed,
    )
    if max_divergence is None and all(budget is None for budget in budgets.values()):
        return made
    batches = None if calibration is None else as_batches(calibration, model)
    with reporting(progress) as report:
        variants = candidate_variants(made.layers, selection.fixed, automatic, timed)
        made = _with_scores(made, variants, model, example_input, batches, report)
        if max_divergence is not None:
            return meet_divergence(model, made, max_divergence, batches or [], report)
        if macs is None and params is None:
            macs = 1.0  # all stay, before time decides
        made = meet_budget(made, macs=macs, params=params)
        if latency is not None:
            made = meet_latency(model, example_input, made, latency, prepare, report)
    return made


def _with_scores(
    plan: ConversionPlan,
    variants: dict[str, tuple[Variant, ...]],
    model: nn.Module,
    example_input: Any,
    batches: list[Any] | None,
    report: Report,
) -> ConversionPlan:
    """Score variants that save something, by name; layers without any are kept."""
    without = {layer.name for layer in undecided_layers(plan.layers)} - variants.keys()
    layers = tuple(
        layer.keep('no_gain') if layer.name in without else layer for layer in plan.layers
    )
    if variants:
        layers = score(model, layers, variants, example_input, batches, plan.seed, report)
    return replace(plan, layers=layers)


@plain_forward()
def convert(
    model: nn.Module,
    example_input: Any,
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
    latency: float | str | None = None,
    latency_backend: str | PrepareFn = 'eager',
    max_divergence: float | None = None,
    calibration: Iterable[Any] | None = None,
    ratio: float = SETTINGS['ratio'],
    dw_size: int | None = None,
    cheap: str = SETTINGS['cheap'],
    group_size: int | str | None = None,
    include: Any = None,
    exclude: Any = None,
    keep_first: bool = True,
    keep_last: bool = True,
    seed: int = 0,
    reconstruct: str | None = None,
    steps: int = NUM_STEPS,
    repair: bool = True,
    share_permutations: bool | None = None,
    inherit: bool = True,
    inplace: bool = False,
    optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    progress: ProgressFn | Literal[False] | None = None,
    ready: PrepareFn | None = None,
) -> tuple[nn.Module, ConversionPlan]:
    """Plan a conversion and apply it.

    Args:
        model, example_input, macs, params, latency, latency_backend, max_divergence: As in
            :func:`plan`.
        ratio, dw_size, cheap, group_size, include, exclude, keep_first, keep_last: The same.
        seed, ready: The same.
        calibration: Batches for both.
        reconstruct, steps, repair, share_permutations, inherit, inplace, optimizers: As in
            :meth:`ghost_plugin.ConversionPlan.apply`.
        progress: The same.

    Returns:
        The converted model, and its plan with the error of each layer.

    Raises:
        ValueError: As both; where no conv can be converted at all, it counts the reasons.
        TypeError: As both.
    """
    batches = None if calibration is None else as_batches(calibration, model)
    made = plan(
        model,
        example_input,
        macs=macs,
        params=params,
        latency=latency,
        latency_backend=latency_backend,
        max_divergence=max_divergence,
        calibration=batches,
        ratio=ratio,
        dw_size=dw_size,
        cheap=cheap,
        group_size=group_size,
        include=include,
        exclude=exclude,
        keep_first=keep_first,
        keep_last=keep_last,
        seed=seed,
        progress=progress,
        ready=ready,
    )
    result = apply_plan(
        made,
        model,
        calibration=batches,
        reconstruct=reconstruct,
        steps=steps,
        repair=repair,
        share_permutations=share_permutations,
        inherit=inherit,
        inplace=inplace,
        optimizers=optimizers,
        progress=progress,
    )
    return result.model, result.plan
