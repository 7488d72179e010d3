"""From a model to a plan: selection, scores and a budget."""

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..profiling import count
from ..utils.modules import plain_forward
from .budget import meet_budget, open_rows, ratios_of
from .fitting.batches import as_batches, batch_size
from .latency_budget import meet_latency
from .layer_latency import Ready, eager
from .layer_plan import LayerPlan
from .plan import ConversionPlan, fingerprint
from .selection import select
from .sensitivity import score


@plain_forward()
def plan(
    model: nn.Module,
    example_input: Any,
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
    latency: float | str | None = None,
    ready: Ready = eager,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> ConversionPlan:
    """Plan a conversion; the model is not touched, and no data is needed.

    Args:
        model, example_input: A network, and what to call it with once: a tensor, a tuple of
            arguments or a mapping of keyword arguments.
        macs, params: Budgets, as a share of the model's (0.6) or an amount (``'240M'``): ratios
            are then chosen per conv, from :data:`~ghost_plugin.conversion.budget.RATIOS`, those
            that harm the output least. Never exceeded.
        latency: As a share of the model's own on this machine, or an amount (``'5ms'``): convs are
            timed, those whose Ghost is slower stay, and the plan is measured at the end. Beside
            another budget it only raises the ratios that this has chosen.
        ready: What is timed for ``latency``: takes a module and its input, gives a call. The module
            itself without it; ``gp.deploy.ready('onnxruntime')`` times what ONNX Runtime makes of
            it, and so on for the backends of :func:`ghost_plugin.optimize` that run single layers.
        calibration: Batches to score convs on for a budget; noise of the example's kind without,
            and beside fewer than eight images.
        seed: Of fresh weights, and of labels drawn for scores.
        options: ``ratio=2``, ``dw_size=3``, ``cheap='depthwise'`` of all Ghost convs; ``include``,
            ``exclude``, ``keep_first=True``, ``keep_last=True`` as
            :func:`ghost_plugin.conversion.selection.select`.

    Returns:
        The plan. With a budget its rows hold scores, so that
        :meth:`ConversionPlan.rebudget` finds plans for other targets without measuring again.

    Raises:
        ValueError: A pattern matches no conv; a budget cannot be met; ``calibration`` without a
            batch; ``ready`` without ``latency``.
        TypeError: An option that does not exist, or a model wrapped in another.
    """
    if latency is None and ready is not eager:
        raise ValueError(
            'ready (--latency-by) is what latency (--latency) is measured with, and no latency was '
            'given; give one, such as 0.8, or leave ready out'
        )
    if isinstance(example_input, list):
        example_input = tuple(example_input)
    found = select(model, example_input, **options)
    number = max(1, batch_size(example_input))
    whole = count(model, example_input)
    made = ConversionPlan(
        type(model).__name__,
        fingerprint(model),
        [LayerPlan.of(f) for f in found],
        whole.params,
        whole.macs // number,
        seed=seed,
    )
    if macs is None and params is None and latency is None:
        return made
    fixed = {f.name for f in found if f.fixed}
    ratios = {row.name: ratios_of(row, row.name in fixed) for row in open_rows(made.rows)}
    ratios = {name: own for name, own in ratios.items() if own}
    batches = None if calibration is None else as_batches(calibration, model)
    _close(made.rows, ratios)
    if ratios:
        score(model, made.rows, ratios, example_input, batches, seed)
    if macs is None and params is None:
        macs = 1.0  # all stay, before time decides
    meet_budget(made.rows, {'macs': made.macs, 'params': made.params}, macs=macs, params=params)
    if latency is not None:
        meet_latency(model, example_input, made, latency, ready)
    return made


def _close(rows: list[LayerPlan], ratios: dict[str, list[float]]) -> None:
    """Rows that no ratio gains anything for stay."""
    for row in open_rows(rows):
        if row.name not in ratios:
            row.decision, row.reason = 'keep', 'no_gain'


@plain_forward()
def convert(
    model: nn.Module, example_input: Any, **options: Any
) -> tuple[nn.Module, ConversionPlan]:
    """:func:`plan` and :meth:`ConversionPlan.apply` in one.

    Args:
        model, example_input: As in :func:`plan`.
        options: Of both.

    Returns:
        The converted model and its plan.

    Raises:
        ValueError: As both; where no conv can be converted at all, it counts the reasons.
    """
    known = set(inspect.signature(ConversionPlan.apply).parameters) - {'self', 'model'}
    applied = {name: value for name, value in options.items() if name in known}
    if options.get('calibration') is not None:
        options['calibration'] = applied['calibration'] = as_batches(options['calibration'], model)
    planned = {n: v for n, v in options.items() if n not in applied or n == 'calibration'}
    made = plan(model, example_input, **planned)
    return made.apply(model, **applied), made
