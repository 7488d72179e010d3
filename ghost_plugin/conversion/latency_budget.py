"""Stage 4 for a budget of time: the least loss increase that meets it, as measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .budget import Choice, choices, decide, greedy_select, keep_min_ratio
from .layer_latency import PrepareFn, converted_copy, measure_latencies, time_layers
from .plan import ConversionPlan, LayerPlan
from .progress import Report, silent

MAX_TRIES = 5  # plans that are measured
TOLERANCE = 0.03  # a plan that meets the budget by less of the original's time is taken
MIN_GAIN = 0.05  # lower bound of the measured part of a forecast
MARGIN = 0.01  # a Ghost is faster only if it is so by more than that share


@dataclass(frozen=True)
class _MeasuredPlan:
    """A plan that was measured.

    Attributes:
        plan: With ``latency``.
        chosen: Its choices by name.
    """

    plan: ConversionPlan
    chosen: dict[str, Choice]

    @property
    def share(self) -> float:
        """Its time as a share of the original's."""
        return self.plan.latency['converted'] / self.plan.latency['original']

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
    options = {layer.name: _choices(layer) for layer in layers if layer.scores}
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
    slower = {name for name, own in options.items() if len(own) == 1}
    layers = tuple(
        layer.keep('slower') if layer.name in slower and not layer.converts else layer
        for layer in best.layers
    )
    return replace(best, layers=layers)


def _measure_plans(
    model: nn.Module,
    example_input: Any,
    plan: ConversionPlan,
    options: Mapping[str, list[Choice]],
    share: float,
    prepare: PrepareFn,
) -> list[_MeasuredPlan]:
    """Measure plans, each with the forecast corrected by the measurement before."""
    smallest = {name: min(own, key=lambda c: c.cost) for name, own in options.items()}
    dense = sum(layer.latencies['1'] for layer in plan.layers if layer.name in options)
    original = {'original': model}
    whole = measure_latencies(original, example_input, prepare)['original']
    measured: list[_MeasuredPlan] = []
    forecast_gain = 1.0
    while len(measured) < MAX_TRIES:
        limit = dense - (1 - share) * whole / forecast_gain
        chosen = _select_within(options, limit) or smallest
        if chosen in [one.chosen for one in measured]:
            break
        tried = replace(plan, layers=decide(plan.layers, chosen))
        if any(layer.converts for layer in tried.layers):
            nets = {**original, 'converted': converted_copy(model, tried)}
            times = measure_latencies(nets, example_input, prepare)
        else:
            times = measure_latencies(original, example_input, prepare)
            times['converted'] = times['original']
        now = _MeasuredPlan(replace(tried, latency=times), chosen)
        measured.append(now)
        if share - TOLERANCE <= now.share <= share:
            break
        whole = times['original']
        forecast = (dense - sum(choice.cost for choice in chosen.values())) / whole
        forecast_gain = max((1 - now.share) / max(forecast, 1e-9), MIN_GAIN)
    return measured


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


def _select_within(options: Mapping[str, list[Choice]], limit: float) -> dict[str, Choice] | None:
    """Choices whose forecast is at most ``limit`` milliseconds; None where there are none."""
    try:
        return greedy_select(options, limit, 'latency')
    except ValueError:
        return None


def _choices(layer: LayerPlan) -> list[Choice]:
    """The conv as other budgets leave it, and every higher ratio that measured faster."""
    timed = choices(layer, lambda variant: layer.latencies[variant.key])
    first, *higher = keep_min_ratio(timed, layer)
    return [first, *(choice for choice in higher if choice.cost < (1 - MARGIN) * first.cost)]
