"""A budget of time: the least harm that meets it, as measured on the whole network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .budget import Choice, choices, decide, greedy_select, no_lower
from .layer_latency import Ready, converted, measure, time_rows
from .layer_plan import LayerPlan
from .plan import ConversionPlan

TRIES = 5  # plans that are measured
CLOSE = 0.03  # a plan that meets the budget by less of the original's time will do
YIELDS = 0.05  # least part of a forecast that is taken to come out
MARGIN = 0.01  # a Ghost is faster only if it is so by more than that share


@dataclass(frozen=True)
class _Tried:
    """A plan that was measured: its choices, and milliseconds of the original and of its own."""

    chosen: dict[str, Choice]
    times: dict[str, float]

    @property
    def share(self) -> float:
        """Of the original's time."""
        return self.times['converted'] / self.times['original']

    @property
    def harm(self) -> float:
        """Scores of its ratios."""
        return sum(choice.harm for choice in self.chosen.values())


def meet_latency(
    model: nn.Module,
    example_input: Any,
    plan: ConversionPlan,
    budget: float | str,
    ready: Ready,
) -> None:
    """Decide the scored rows so that the model meets a time, in place.

    Convs whose Ghosts are slower stay, but for what other budgets have decided: no ratio falls
    below that. The sum of what single convs save is only a forecast, so the plan's own model is
    measured beside the original, and the forecast corrected by what came out, a few times; the
    least harmful plan that met the budget is kept.

    Args:
        model: The original.
        example_input: What it is called with; its batch size and device are what is timed.
        plan: With scores; decided where there are other budgets, or all open rows kept.
        budget: A share of the original's time, or milliseconds such as ``'5ms'``.
        ready: What is timed of a module in eval mode.

    Raises:
        ValueError: Not a budget, or no plan that was measured meets it.
    """
    share = _share(model, example_input, budget, ready)
    rows = [row for row in plan.rows if row.scores]
    time_rows(model, example_input, rows, ready)
    options = {row.name: _choices(row) for row in rows}
    tried = _try(model, example_input, plan, options, share, ready)
    met = [one for one in tried if one.share <= share]
    if not met:
        fastest = min([1.0, *(one.share for one in tried)])
        raise ValueError(
            f'latency={budget!r} is {share:.3f} of what the model takes here; the fastest plan '
            f'measured takes {fastest:.3f}. Ghost convs save fewer milliseconds than '
            'multiply-adds; allow more, or set macs= instead'
        )
    best = min(met, key=lambda one: one.harm)
    decide(plan.rows, best.chosen)
    plan.latency = best.times
    for row in rows:
        if not row.converts and len(options[row.name]) == 1:
            row.reason = 'slower'


def _try(
    model: nn.Module,
    example_input: Any,
    plan: ConversionPlan,
    options: Mapping[str, list[Choice]],
    share: float,
    ready: Ready,
) -> list[_Tried]:
    """Plans, each with the forecast corrected by what came out of the one before."""
    smallest = {name: min(own, key=lambda c: c.cost) for name, own in options.items()}
    dense = sum(row.latencies['1'] for row in plan.rows if row.name in options)
    whole = measure({'original': model}, example_input, ready)['original']
    tried: list[_Tried] = []
    yields = 1.0
    while len(tried) < TRIES:
        chosen = _afford(options, dense - (1 - share) * whole / yields) or smallest
        if chosen in [one.chosen for one in tried]:
            break
        decide(plan.rows, chosen)
        now = _Tried(chosen, _times(model, example_input, plan, ready))
        tried.append(now)
        if share - CLOSE <= now.share <= share:
            break
        whole = now.times['original']
        forecast = (dense - sum(choice.cost for choice in chosen.values())) / whole
        yields = max((1 - now.share) / max(forecast, 1e-9), YIELDS)
    return tried


def _times(
    model: nn.Module, example_input: Any, plan: ConversionPlan, ready: Ready
) -> dict[str, float]:
    """Milliseconds of the original and of the plan's network, which may be the original."""
    nets = {'original': model}
    if not any(row.converts for row in plan.rows):
        return dict.fromkeys(
            ('original', 'converted'), measure(nets, example_input, ready)['original']
        )
    return measure({**nets, 'converted': converted(model, plan)}, example_input, ready)


def _share(model: nn.Module, example_input: Any, budget: float | str, ready: Ready) -> float:
    wrong = f"latency must be a share within 0..1 of the model's, or such as '5ms', got {budget!r}"
    text = str(budget)
    try:
        number = float(text.removesuffix('ms'))
    except ValueError:
        raise ValueError(wrong) from None
    if not 0 < number < math.inf or (number > 1 and not text.endswith('ms')):
        raise ValueError(wrong)
    if text.endswith('ms'):
        number /= measure({'original': model}, example_input, ready)['original']
    return number


def _afford(options: Mapping[str, list[Choice]], limit: float) -> dict[str, Choice] | None:
    """Choices that take so many milliseconds by their own forecast; None where none do."""
    try:
        return greedy_select(options, limit, 'latency')
    except ValueError:
        return None


def _choices(row: LayerPlan) -> list[Choice]:
    """The conv as other budgets leave it, and every higher ratio that measured faster."""
    first, *higher = no_lower(choices(row, lambda ratio: row.latencies[f'{ratio:g}']), row)
    return [first, *(choice for choice in higher if choice.cost < (1 - MARGIN) * first.cost)]
