"""Which convs and which ratios, for a budget: the least harm to the output that meets it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .layer_plan import LayerPlan, kept

RATIOS = (1.0625, 1.125, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
_UNITS = {'k': 1e3, 'M': 1e6, 'G': 1e9}
_PLACE = {'params': 0, 'macs': 1}  # in what Shape gives


@dataclass(frozen=True)
class Choice:
    """One ratio for one conv.

    Attributes:
        ratio: 1 keeps the conv.
        cost: In the unit of the budget.
        harm: Score of the ratio; 0 for the conv as it is.
    """

    ratio: float
    cost: float
    harm: float


def target(budget: float | str, before: float, what: str) -> float:
    """A budget as a number.

    Args:
        budget: A share of ``before`` within 0..1, or an amount such as ``'240M'``.
        before: Of the model as it is.
        what: For the message.

    Raises:
        ValueError: Neither.
    """
    if isinstance(budget, str) and budget[-1:] in _UNITS:
        text, unit, most = budget[:-1], _UNITS[budget[-1]], sys.float_info.max
    else:
        text, unit, most = budget, before, 1
    number = _number(text, budget, what)
    if not 0 < number <= most:
        raise ValueError(_wrong(budget, what))
    return number * unit


def _number(text: float | str, budget: float | str, what: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ValueError(_wrong(budget, what)) from None


def _wrong(budget: float | str, what: str) -> str:
    return (
        f"{what} must be a share within 0..1 of the model's, or an amount such as '240M' "
        f'({", ".join(_UNITS)}), got {budget!r}'
    )


def open_rows(rows: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Rows that a budget may decide about."""
    return [row for row in rows if row.converts or row.reason in ('budget', 'slower')]


def ratios_of(row: LayerPlan, fixed: bool) -> list[float]:
    """Ratios that would gain something for a conv, the row's own only where it is fixed."""
    wanted = (row.ratio,) if fixed else RATIOS
    settings = [{**row.settings, 'ratio': ratio} for ratio in wanted]
    return [s['ratio'] for s in settings if row.shape.splits(s) and row.shape.gains(s)]


def meet_budget(
    rows: Sequence[LayerPlan],
    before: Mapping[str, int],
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
) -> None:
    """Decide all open rows so that both budgets are met, in place.

    Raises:
        ValueError: No scores; a budget that no ratios reach.
    """
    wanted = {'macs': macs, 'params': params}
    budgets = {k: target(b, before[k], k) for k, b in wanted.items() if b is not None}
    for number, (what, limit) in enumerate(budgets.items()):
        place = _PLACE[what]
        fixed = before[what] - sum(row.shape.dense()[place] for row in open_rows(rows))
        options = {row.name: choices(row, _cost(row, place)) for row in open_rows(rows)}
        if number:
            options = {row.name: no_lower(options[row.name], row) for row in open_rows(rows)}
        decide(rows, greedy_select(options, limit - fixed, what, fixed, rows))


def no_lower(options: list[Choice], row: LayerPlan) -> list[Choice]:
    """Those choices that keep what another budget has decided."""
    floor = row.ratio if row.converts else 1.0
    return [choice for choice in options if choice.ratio >= floor]


def _cost(row: LayerPlan, place: int) -> Callable[[float], float]:
    def cost(ratio: float) -> float:
        shape = row.shape
        if ratio == 1:
            return shape.dense()[place]
        return shape.ghost({**row.settings, 'ratio': ratio})[place]

    return cost


def choices(row: LayerPlan, cost: Callable[[float], float]) -> list[Choice]:
    """What can be chosen for a row: the conv as it is, and every ratio that was scored."""
    if not row.scores:
        raise ValueError(
            f'{row.name!r} has no scores; they come with a plan that was made for a budget '
            '(macs=, params= or latency= of gp.plan)'
        )
    harms = {1.0: 0.0, **{float(ratio): harm for ratio, harm in row.scores.items()}}
    return [Choice(ratio, cost(ratio), harm) for ratio, harm in sorted(harms.items())]


def greedy_select(
    options: Mapping[str, list[Choice]],
    limit: float,
    what: str,
    fixed: float = 0.0,
    rows: Sequence[LayerPlan] = (),
) -> dict[str, Choice]:
    """One choice for every name with a total cost of at most ``limit`` and little harm.

    The step that does least harm for what it saves is taken until the limit is met; then steps
    are taken back, the most harmful first, where the limit allows.

    Args:
        options: What can be chosen for each name.
        limit: Of all chosen costs.
        what: The budget's name, for the message.
        fixed: Cost of all else, for the message.
        rows: Of the plan, whose reasons the message counts.

    Raises:
        ValueError: Even the smallest choices cost more.
    """
    least = sum(min(c.cost for c in own) for own in options.values())
    if least > limit:
        raise ValueError(
            f'{what} can be brought to {_readable(least + fixed)} at the least, the budget is '
            f'{_readable(limit + fixed)}; allow more, or convert more nn.Conv2d (include, '
            f'keep_first, keep_last); {_stay(rows)}the plan without a budget says why each stays'
        )
    chosen = {name: own[0] for name, own in options.items()}
    total = sum(choice.cost for choice in chosen.values())
    while total > limit:
        steps = [
            (_price(chosen[name], other), name, other)
            for name, own in options.items()
            for other in own
            if other.cost < chosen[name].cost
        ]
        _, name, other = min(steps, key=lambda step: step[:2])
        total += other.cost - chosen[name].cost
        chosen[name] = other
    return _relax_selection(options, chosen, limit - total)


def _stay(rows: Sequence[LayerPlan]) -> str:
    stays = [row for row in rows if row.reason not in ('', 'budget')]
    return f'of {len(rows)} convolutions stay: {kept(stays)}; ' if stays else ''


def _price(now: Choice, other: Choice) -> float:
    return (other.harm - now.harm) / (now.cost - other.cost)


def _relax_selection(
    options: Mapping[str, list[Choice]], chosen: dict[str, Choice], room: float
) -> dict[str, Choice]:
    while True:
        steps = [
            (chosen[name].harm - other.harm, name, other)
            for name, own in options.items()
            for other in own
            if other.harm < chosen[name].harm and other.cost - chosen[name].cost <= room
        ]
        if not steps:
            return chosen
        _, name, other = max(steps, key=lambda step: step[:2])
        room -= other.cost - chosen[name].cost
        chosen[name] = other


def decide(rows: Sequence[LayerPlan], chosen: Mapping[str, Choice]) -> None:
    """Write choices into the rows, in place."""
    for row in rows:
        if row.name not in chosen:
            continue
        ratio = chosen[row.name].ratio
        row.decision = 'keep' if ratio == 1 else 'convert'
        row.reason = 'budget' if ratio == 1 else ''
        row.ratio = ratio if ratio != 1 else row.ratio


def _readable(amount: float) -> str:
    for unit, size in reversed(_UNITS.items()):
        if amount >= size:
            return f'{amount / size:.2f}{unit}'
    return f'{amount:.2f}'
