"""A budget of time: convs and their Ghosts are timed here, and so is the plan in the end."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..analysis import call, evaluating, hooked, time_together
from .budget import Choice, decide, spend
from .plan import ConversionPlan
from .rows import Row
from .surgery import build_ghost

# Turns, timed calls in a turn, untimed calls before: of a network, of one conv.
WHOLE, SINGLE = (15, 1, 3), (3, 5, 3)
TRIES = 4  # plans that are measured until one meets the budget
MARGIN = 0.01  # a Ghost is faster only if it is so by more than that share

# Takes a module and what to call it with; gives a call without arguments.
Ready = Callable[[nn.Module, Any], Callable[[], Any]]


def eager(module: nn.Module, example_input: Any) -> Callable[[], Any]:
    """A call of a module as it is."""

    def run() -> None:
        with torch.no_grad():
            call(module, example_input)

    return run


def meet_latency(
    model: nn.Module,
    example_input: Any,
    plan: ConversionPlan,
    budget: float | str,
    ready: Ready = eager,
) -> None:
    """Decide the scored rows so that the model meets a time, in place.

    Convs whose Ghosts are slower stay. The sum of what single convs save is only a forecast, so
    the plan's own model is measured beside the original, and the forecast corrected by what came
    out, until the budget is met.

    Args:
        model: The original.
        example_input: What it is called with; its batch size and device are what is timed.
        plan: With scores.
        budget: A share of the original's time, or milliseconds such as ``'5ms'``.
        ready: What is timed of a module in eval mode.

    Raises:
        ValueError: Not a budget, or no plan that was measured meets it.
    """
    share = _share(model, example_input, budget, ready)
    rows = [row for row in plan.rows if row.scores]
    _time_rows(model, example_input, rows, ready)
    options = {row.name: own for row in rows if len(own := _choices(row)) > 1}
    for row in rows:
        if row.name not in options:
            row.decision, row.reason = 'keep', 'slower'
    yields, fastest = 1.0, 1.0
    smallest = {name: min(own, key=lambda c: c.cost) for name, own in options.items()}
    whole = _measure({'original': model}, example_input, ready)['original']
    for _ in range(TRIES if options else 0):
        chosen = _afford(options, (1 - share) * whole / yields) or smallest
        decide(plan.rows, chosen)
        nets = {'original': model, 'converted': plan.apply(model, inherit=False)}
        times = _measure(nets, example_input, ready)
        plan.latency, whole = times, times['original']
        reached = times['converted'] / whole
        fastest = min(fastest, reached)
        if reached <= share:
            return
        forecast = sum(options[n][0].cost - c.cost for n, c in chosen.items()) / whole
        yields = min(yields * 0.95, (1 - reached) / max(forecast, 1e-9))
        if yields <= 0 or chosen == smallest:
            break
    raise ValueError(
        f'latency={budget!r} is {share:.2f} of what the model takes here; the fastest plan '
        f'measured takes {fastest:.2f}. Ghost convs save fewer milliseconds than multiply-adds; '
        'allow more, or set macs= instead'
    )


def _share(model: nn.Module, example_input: Any, budget: float | str, ready: Ready) -> float:
    wrong = f"latency must be a share within 0..1 of the model's, or such as '5ms', got {budget!r}"
    text = str(budget)
    try:
        number = float(text.removesuffix('ms'))
    except ValueError:
        raise ValueError(wrong) from None
    if text.endswith('ms'):
        number /= _measure({'original': model}, example_input, ready)['original']
    if not 0 < number:
        raise ValueError(wrong)
    return min(number, 1.0)


def _afford(options: Mapping[str, list[Choice]], saved: float) -> dict[str, Choice] | None:
    """Choices that save so many milliseconds by their own forecast; None where none do."""
    whole = sum(own[0].cost for own in options.values())
    try:
        return spend(options, whole - saved, 'latency')
    except ValueError:
        return None


def _choices(row: Row) -> list[Choice]:
    """The conv as it is, and every ratio that measured faster."""
    dense = row.latencies['1']
    harms = {'1': 0.0, **row.scores}
    return [
        Choice(float(ratio), time, harms[ratio])
        for ratio, time in row.latencies.items()
        if ratio == '1' or time < (1 - MARGIN) * dense
    ]


def _time_rows(model: nn.Module, example_input: Any, rows: list[Row], ready: Ready) -> None:
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable:
        return lambda module, given, maps: inputs.update({name: given[0].detach().clone()})

    handles = [model.get_submodule(r.name).register_forward_hook(keep(r.name)) for r in rows]
    with hooked(*handles), evaluating(model):
        call(model, example_input)
    known: dict[str, dict[str, float]] = {}
    for row in rows:
        conv, x = model.get_submodule(row.name), inputs[row.name]
        ghosts = {ratio: {**row.settings, 'ratio': float(ratio)} for ratio in row.scores}
        # A conv's text has all its settings, and two of the same take the same time.
        kind = repr((conv, x.shape, x.stride(), x.dtype, ghosts))
        if kind not in known:
            convs = {'1': conv} | {r: build_ghost(conv, own) for r, own in ghosts.items()}
            known[kind] = _measure(convs, x, ready, SINGLE)
        calls = row.shape.pixels / max(1, _pixels(conv, x))
        row.latencies = {ratio: time * calls for ratio, time in known[kind].items()}


def _pixels(conv: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad():
        return conv(x)[0, 0].numel()


def _measure(
    nets: Mapping[str, nn.Module],
    example_input: Any,
    ready: Ready,
    times: tuple[int, int, int] = WHOLE,
) -> dict[str, float]:
    """Median milliseconds of each, in turns."""
    turns, calls, warmup = times
    tasks = {name: ready(copy.deepcopy(net).eval(), example_input) for name, net in nets.items()}
    timings = time_together(tasks, turns, warmup, ready is not eager, calls)
    return {t.name: t.median for t in timings}
