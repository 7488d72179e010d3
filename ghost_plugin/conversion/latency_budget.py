"""Stage 4 for a budget of time: the least loss increase that meets it, as measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .budget import Choice, choices, decide, greedy_select, keep_min_ratio
from .layer_latency import (
    PrepareFn,
    converted_copy,
    measure_latencies,
    shortcut_layers,
    time_layers,
)
from .plan import ConversionPlan, LayerPlan
from .progress import Report, silent
from .sensitivity import POWER
from .variants import Variant

MAX_TRIES = 5  # plans that are measured
TOLERANCE = 0.03  # a plan that meets the budget by less of the original's time is taken
MIN_GAIN = 0.05  # lower bound of the measured part of a forecast
MARGIN = 0.01  # a Ghost is faster only if it is so by more than that share
# Error of convs that choose primary channels together, as a multiple of that of each alone, by
# group size; measured on the shortcuts of EfficientNet-Lite0 at ratio 2.
JOINT_PRICE: dict[int | str | None, float] = {'all': 1.13}
OTHER_PRICE = 1.2


@dataclass(frozen=True)
class _JointChoice(Choice):
    """One variant for some convs of a shortcut, or for a single conv.

    Attributes:
        converted: Names of these; the other convs of the shortcut stay.
    """

    converted: tuple[str, ...]


Options = Mapping[tuple[str, ...], list[_JointChoice]]  # by the names of convs of a shortcut


@dataclass(frozen=True)
class _MeasuredPlan:
    """A plan that was measured.

    Attributes:
        plan: With ``latency``.
        chosen: Its choices by the names of their convs.
        share: Its time as a share of the original's, as another measurement may find it.
    """

    plan: ConversionPlan
    chosen: dict[tuple[str, ...], _JointChoice]
    share: float

    @property
    def loss_increase(self) -> float:
        """Sum of the scores of its ratios."""
        return sum(choice.loss_increase for choice in self.chosen.values())


def meet_latency(
    model: nn.Module,
    example_input: Any,
    plan: ConversionPlan,
    budget: float | str,
    prepare: PrepareFn,
    report: Report = silent,
) -> ConversionPlan:
    """Decide the scored layers so that the model meets a time.

    Convs whose Ghosts are slower stay, but for ratios that other budgets have chosen: no ratio
    falls below that. The sum of the savings of single convs is only a forecast, so the plan's own
    model is measured beside the original, and the forecast corrected by the result, a few times;
    the plan with the least loss increase that met the budget is kept.

    Args:
        model: The original.
        example_input: Its input; its batch size and device are timed.
        plan: With scores; decided where there are other budgets, or all undecided layers kept.
        budget: A share of the original's time, or milliseconds such as ``'5ms'``.
        prepare: Function of the backend, for modules in eval mode.
        report: Gets the events of the stages.

    Raises:
        ValueError: Not a budget, or no plan that was measured meets it.
    """
    share = _share(model, example_input, budget, prepare)
    scored = [layer for layer in plan.layers if layer.scores]
    latencies = time_layers(model, example_input, scored, prepare, report)
    layers = tuple(
        replace(layer, latencies=latencies.get(layer.name, layer.latencies))
        for layer in plan.layers
    )
    plan = replace(plan, layers=layers)
    options = _options(model, [layer for layer in layers if layer.scores])
    measured = _measure_plans(model, example_input, plan, options, share, prepare)
    met = [one for one in measured if one.share <= share]
    if not met:
        fastest = min([1.0, *(one.share for one in measured)])
        raise ValueError(
            f'latency={budget!r} is {share:.3f} of the latency of the model here; the fastest plan '
            f'measured takes {fastest:.3f}. Ghost convs save fewer milliseconds than '
            'multiply-adds; allow more, or set macs= instead'
        )
    best = min(met, key=lambda one: one.loss_increase).plan
    faster = {name for own in options.values() for one in own for name in one.converted}
    slower = {layer.name for layer in scored} - faster
    layers = tuple(
        layer.keep('slower') if layer.name in slower and not layer.converts else layer
        for layer in best.layers
    )
    return replace(best, layers=layers)


def _measure_plans(
    model: nn.Module,
    example_input: Any,
    plan: ConversionPlan,
    options: Options,
    share: float,
    prepare: PrepareFn,
) -> list[_MeasuredPlan]:
    """Measure plans, each with the forecast corrected by the measurement before."""
    smallest = {names: min(own, key=lambda c: c.cost) for names, own in options.items()}
    timed = {name for names in options for name in names}
    dense = sum(layer.latencies['1'] for layer in plan.layers if layer.name in timed)
    original = {'original': model}
    whole = measure_latencies(original, example_input, prepare)['original']
    measured: list[_MeasuredPlan] = []
    forecast_gain = 1.0
    while len(measured) < MAX_TRIES:
        limit = dense - (1 - share) * whole / forecast_gain
        chosen = _select_within(options, limit) or smallest
        if chosen in [one.chosen for one in measured]:
            break
        tried = replace(plan, layers=decide(plan.layers, _by_name(chosen)))
        if any(layer.converts for layer in tried.layers):
            nets = {**original, 'converted': converted_copy(model, tried)}
            times, found = _measure_twice(nets, example_input, share, prepare)
        else:
            times = measure_latencies(original, example_input, prepare)
            times['converted'], found = times['original'], 1.0
        now = _MeasuredPlan(replace(tried, latency=times), chosen, found)
        measured.append(now)
        if share - TOLERANCE <= now.share <= share:
            break
        whole = times['original']
        forecast = (dense - sum(choice.cost for choice in chosen.values())) / whole
        forecast_gain = max((1 - now.share) / max(forecast, 1e-9), MIN_GAIN)
    return measured


def _measure_twice(
    nets: Mapping[str, nn.Module], example_input: Any, budget: float, prepare: PrepareFn
) -> tuple[dict[str, float], float]:
    """Measure ``'original'`` and ``'converted'``, and once more if this meets the budget.

    Args:
        nets, example_input, prepare: As in :func:`measure_latencies`.
        budget: Share of the original's time.

    Returns:
        Milliseconds of the slower measurement, and its share of the original's time, with as much
        more as the two differ: a third one seldom finds more.
    """
    times = measure_latencies(nets, example_input, prepare)
    share = times['converted'] / times['original']
    if share > budget:
        return times, share
    again = measure_latencies(nets, example_input, prepare)
    second = again['converted'] / again['original']
    return (times if share > second else again), max(share, second) + abs(share - second)


def _share(model: nn.Module, example_input: Any, budget: float | str, prepare: PrepareFn) -> float:
    wrong = f"latency must be a share within 0..1 of the model's, or such as '5ms', got {budget!r}"
    text = str(budget)
    try:
        number = float(text.removesuffix('ms'))
    except ValueError:
        raise ValueError(wrong) from None
    if not 0 < number < math.inf or (number > 1 and not text.endswith('ms')):
        raise ValueError(wrong)
    if text.endswith('ms'):
        number /= measure_latencies({'original': model}, example_input, prepare)['original']
    return number


def _select_within(options: Options, limit: float) -> dict[tuple[str, ...], _JointChoice] | None:
    """Choices whose forecast is at most ``limit`` milliseconds; None where there are none."""
    try:
        return greedy_select(options, limit, 'latency')
    except ValueError:
        return None


def _by_name(chosen: Mapping[tuple[str, ...], _JointChoice]) -> dict[str, Choice]:
    """The choice of each conv."""
    dense = Choice(Variant(1.0), 0.0, 0.0)
    return {
        name: choice if name in choice.converted else dense
        for names, choice in chosen.items()
        for name in names
    }


def _options(model: nn.Module, layers: Sequence[LayerPlan]) -> Options:
    """Choices of single convs, and joint ones of convs whose outputs a shortcut adds.

    Where another budget has converted some of these already each chooses for itself.

    Args:
        model: The original.
        layers: With scores and latencies.
    """
    by_name = {layer.name: layer for layer in layers}
    shortcuts = [
        [by_name[name] for name in names]
        for names in shortcut_layers(model, layers)
        if not any(by_name[name].converts for name in names)
    ]
    joint = {layer.name for own in shortcuts for layer in own}
    return {
        **{(layer.name,): _choices(layer) for layer in layers if layer.name not in joint},
        **{tuple(layer.name for layer in own): _joint_choices(own) for own in shortcuts},
    }


def _choices(layer: LayerPlan) -> list[_JointChoice]:
    """The conv as other budgets leave it, and every higher ratio that measured faster."""
    timed = choices(layer, lambda variant: layer.latencies[variant.key])
    first, *higher = keep_min_ratio(timed, layer)
    faster = [choice for choice in higher if choice.cost < (1 - MARGIN) * first.cost]
    return [
        _JointChoice(**vars(choice), converted=(layer.name,) if choice.ratio > 1 else ())
        for choice in (first, *faster)
    ]


def _joint_choices(layers: Sequence[LayerPlan]) -> list[_JointChoice]:
    """All convs as they are, and each variant for those that lose least for what they save.

    Args:
        layers: Of one shortcut.
    """
    dense = sum(layer.latencies['1'] for layer in layers)
    found = [_JointChoice(Variant(1.0), dense, 0.0, ())]
    own = {layer.name: {one.variant: one for one in _choices(layer)} for layer in layers}
    for variant in dict.fromkeys(v for some in own.values() for v in some if v.ratio > 1):
        able = [layer for layer in layers if variant in own[layer.name]]
        saved = {row.name: row.latencies['1'] - own[row.name][variant].cost for row in able}
        lost = {row.name: own[row.name][variant].loss_increase for row in able}
        ranked = sorted(saved, key=lambda name: lost[name] / saved[name])
        for number in range(1, len(ranked) + 1):
            names = tuple(ranked[:number])
            loss = sum(lost[name] for name in names)
            if number > 1:
                loss *= JOINT_PRICE.get(variant.group_size, OTHER_PRICE) ** POWER
            cost = dense - sum(saved[name] for name in names)
            found.append(_JointChoice(variant, cost, loss, names))
    return found
