"""Stage 4: choose convs and ratios for a budget with the least estimated change of the output."""

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from .plan import ConversionPlan, LayerPlan, count_reasons
from .variants import RATIOS, Variant, automatic_variants

_UNITS = {'k': 1e3, 'M': 1e6, 'G': 1e9}
_COSTS = {'params': 0, 'macs': 1}  # index into the costs of a ConvSpec


@dataclass(frozen=True)
class Choice:
    """One variant for one conv.

    Attributes:
        variant: Its ratio is 1 for the conv as it is.
        cost: Cost in the unit of the budget.
        loss_increase: Score of the variant; 0 for the conv as it is.
    """

    variant: Variant
    cost: float
    loss_increase: float

    @property
    def ratio(self) -> float:
        """Ratio of the variant."""
        return self.variant.ratio


Key = TypeVar('Key', bound=Hashable)
AnyChoice = TypeVar('AnyChoice', bound=Choice)


def target(budget: float | str, before: float, name: str) -> float:
    """Convert a budget to an amount.

    Args:
        budget: A share of ``before`` within 0..1, or an amount such as ``'240M'``.
        before: Cost of the model as it is.
        name: Name of the budget, for the message.

    Raises:
        ValueError: Neither.
    """
    text: float | str
    if isinstance(budget, str) and budget[-1:] in _UNITS:
        text, unit, most = budget[:-1], _UNITS[budget[-1]], sys.float_info.max
    else:
        text, unit, most = budget, before, 1
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = 0
    if not 0 < number <= most:
        raise ValueError(
            f"{name} must be a share within 0..1 of the model's, or an amount such as '240M' "
            f'({", ".join(_UNITS)}), got {budget!r}'
        )
    return number * unit


def undecided_layers(layers: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Return the layers that a budget may decide about."""
    return [layer for layer in layers if layer.converts or layer.reason in ('budget', 'slower')]


def candidate_variants(
    layers: Sequence[LayerPlan],
    fixed: frozenset[str],
    automatic: frozenset[str] = frozenset(),
    timed: bool = False,
) -> dict[str, tuple[Variant, ...]]:
    """Return the variants of each undecided layer that would save something, by name.

    Args:
        layers: Layers of a plan.
        fixed: Names of layers that have their only ratio already.
        automatic: Names of layers whose kernel and group sizes may be chosen.
        timed: Whether the budget is one of time.
    """
    found = {}
    for layer in undecided_layers(layers):
        shape = layer.shape
        if layer.name in fixed:
            variants = [Variant(layer.ratio)]
        elif layer.name in automatic:
            variants = automatic_variants(shape, timed)
        else:
            variants = [Variant(ratio) for ratio in RATIOS]
        settings = {variant: variant.settings(layer.settings) for variant in variants}
        saving = tuple(
            variant
            for variant, own in settings.items()
            if not shape.settings_blocker(own) and shape.ghost_saves(own)
        )
        if saving:
            found[layer.name] = saving
    return found


def meet_budget(
    plan: ConversionPlan, *, macs: float | str | None = None, params: float | str | None = None
) -> ConversionPlan:
    """Decide all undecided layers so that both budgets are met.

    Args:
        plan: A plan with scores.
        macs, params: As in :func:`ghost_plugin.plan`.

    Raises:
        ValueError: No scores; a budget that no ratios reach.
    """
    before = {'macs': plan.macs, 'params': plan.params}
    wanted = {'macs': macs, 'params': params}
    budgets = {k: target(b, before[k], k) for k, b in wanted.items() if b is not None}
    layers, met = plan.layers, list[int]()
    for name, limit in budgets.items():
        undecided, index = undecided_layers(layers), _COSTS[name]
        fixed = before[name] - sum(layer.shape.dense()[index] for layer in undecided)
        options = {row.name: choices(row, partial(_cost, row, index)) for row in undecided}
        if met:
            options = {
                row.name: _not_costlier(keep_min_ratio(options[row.name], row), row, met)
                for row in undecided
            }
        met.append(index)
        layers = decide(layers, greedy_select(options, limit - fixed, name, fixed, layers))
    return replace(plan, layers=layers)


def keep_min_ratio(options: list[Choice], layer: LayerPlan) -> list[Choice]:
    """Return the choices with at least the ratio that another budget has chosen.

    Args:
        options: Choices of the layer.
        layer: The layer as that budget left it.
    """
    floor = layer.ratio if layer.converts else 1.0
    return [choice for choice in options if choice.ratio >= floor]


def _not_costlier(options: list[Choice], layer: LayerPlan, met: Sequence[int]) -> list[Choice]:
    """Return the choices with which budgets that are met stay so: mixed ghosts of one ratio differ.

    Args:
        options: Choices of the layer.
        layer: The layer as those budgets left it.
        met: Their costs, as indices into the costs of a ConvSpec.
    """
    now = Variant(layer.ratio if layer.converts else 1.0)
    most = [_cost(layer, index, now) for index in met]
    return [
        choice
        for choice in options
        if all(
            _cost(layer, index, choice.variant) <= limit
            for index, limit in zip(met, most, strict=True)
        )
    ]


def _cost(layer: LayerPlan, index: int, variant: Variant) -> int:
    if variant.ratio == 1:
        return layer.shape.dense()[index]
    return layer.shape.ghost(variant.settings(layer.settings))[index]


def choices(layer: LayerPlan, cost: Callable[[Variant], float]) -> list[Choice]:
    """Return what can be chosen for a layer: the conv as it is, and every variant with a score.

    Args:
        layer: A layer with scores.
        cost: Gives the cost of a variant.

    Raises:
        ValueError: No scores.
    """
    if not layer.scores:
        raise ValueError(
            f'{layer.name!r} has no scores; they come with a plan that was made for a budget '
            '(macs=, params= or latency= of gp.plan)'
        )
    dense = Variant(1.0)
    scored = [(Variant.from_key(key), score) for key, score in layer.scores.items()]
    found = [Choice(variant, cost(variant), score) for variant, score in scored]
    return [Choice(dense, cost(dense), 0.0), *sorted(found, key=lambda one: one.ratio)]


def greedy_select(
    options: Mapping[Key, list[AnyChoice]],
    limit: float,
    budget: str,
    fixed: float = 0.0,
    layers: Sequence[LayerPlan] = (),
) -> dict[Key, AnyChoice]:
    """Select one choice for every name, with a total cost of at most ``limit``.

    The step with the least loss increase for what it saves is taken until the limit is met; then
    steps are taken back, the largest loss increase first, where the limit allows.

    Args:
        options: Choices for each name.
        limit: Upper bound of the sum of chosen costs.
        budget: The budget's name, for the message.
        fixed: Cost of all else, for the message.
        layers: Layers of the plan, whose reasons the message counts.

    Raises:
        ValueError: Even the smallest choices cost more.
    """
    least = sum(min(c.cost for c in own) for own in options.values())
    if least > limit:
        kept = [layer for layer in layers if layer.reason not in ('', 'budget')]
        said = f'of {len(layers)} convolutions stay: {count_reasons(kept)}; ' if kept else ''
        raise ValueError(
            f'{budget} can be brought to {_readable(least + fixed)} at the least, the budget is '
            f'{_readable(limit + fixed)}; allow more, or convert more nn.Conv2d (include, '
            f'keep_first, keep_last); {said}the plan without a budget says why each stays'
        )
    chosen = {name: own[0] for name, own in options.items()}
    total = sum(choice.cost for choice in chosen.values())
    while total > limit:
        steps = [
            ((other.loss_increase - now.loss_increase) / (now.cost - other.cost), name, other)
            for name, now in chosen.items()
            for other in options[name]
            if other.cost < now.cost
        ]
        _, name, other = min(steps, key=lambda step: step[:2])
        total += other.cost - chosen[name].cost
        chosen[name] = other
    return _relax_selection(options, chosen, limit - total)


def _relax_selection(
    options: Mapping[Key, list[AnyChoice]], chosen: dict[Key, AnyChoice], spare: float
) -> dict[Key, AnyChoice]:
    """Take steps back while their cost is at most ``spare``."""
    while True:
        steps = [
            (now.loss_increase - other.loss_increase, name, other)
            for name, now in chosen.items()
            for other in options[name]
            if other.loss_increase < now.loss_increase and other.cost - now.cost <= spare
        ]
        if not steps:
            return chosen
        _, name, other = max(steps, key=lambda step: step[:2])
        spare -= other.cost - chosen[name].cost
        chosen[name] = other


def decide(layers: Sequence[LayerPlan], chosen: Mapping[str, Choice]) -> tuple[LayerPlan, ...]:
    """Return the layers with their chosen ratios.

    Args:
        layers: Layers of a plan.
        chosen: The choice by name; other layers stay as they are.
    """
    return tuple(
        layer
        if layer.name not in chosen
        else layer.keep('budget')
        if chosen[layer.name].ratio == 1
        else replace(
            layer,
            decision='convert',
            reason='',
            **chosen[layer.name].variant.settings(layer.settings),
        )
        for layer in layers
    )


def _readable(amount: float) -> str:
    for unit, size in reversed(_UNITS.items()):
        if amount >= size:
            return f'{amount / size:.2f}{unit}'
    return f'{amount:.2f}'
