"""Stage 4 for a bound of the divergence: the fewest multiply-adds that keep it, as measured.

Scores of convs say which plan is best for some multiply-adds, not how far its outputs will be off.
So plans of some sizes are applied and measured, each on calibration images that its fits did not
see. The logarithm of the divergence is nearly linear in the share of multiply-adds, so a few plans
are enough.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .budget import meet_budget, undecided_layers
from .judging import JudgingError, make_judge
from .plan import ConversionPlan
from .progress import Report
from .variants import Variant

FIRST_SHARE = 0.8  # of the multiply-adds
MAX_TRIES = 6  # plans that are applied
CLOSE = 0.85  # a plan with at least so much of the divergence allowed is taken
MIN_STEP, MAX_STEP = 0.005, 0.15  # between shares
SLOPE = 20  # of the divergence's logarithm by the share, until two plans show it


@dataclass(frozen=True)
class _Trial:
    """A plan that was applied.

    Attributes:
        plan: The plan.
        share: Of the original's multiply-adds that it has.
        divergence: As :meth:`Judge.divergence` bounds it.
    """

    plan: ConversionPlan
    share: float
    divergence: float


def meet_divergence(
    model: nn.Module, plan: ConversionPlan, limit: float, batches: Sequence[Any], report: Report
) -> ConversionPlan:
    """Find the plan of the fewest multiply-adds whose divergence stays below a limit.

    Args:
        model: The original; it is left as it was.
        plan: A plan with scores.
        limit: Mean divergence, see :mod:`ghost_plugin.conversion.fitting.divergence`.
        batches: Calibration batches; the last images judge, the others are fitted to.
        report: Gets the number of plans that were tried.

    Returns:
        The plan, with ``divergence``.

    Raises:
        ValueError: Too few images; a model whose outputs cannot be compared; no plan that
            converts anything stays below the limit.
    """
    try:
        judge = make_judge(model, batches)
    except JudgingError as error:
        raise ValueError(f'max_divergence cannot be measured: {error}') from error
    least = _least_share(plan)
    kept: _Trial | None = None  # the cheapest plan below the limit
    failed: _Trial | None = None  # the dearest above
    share = max(least, FIRST_SHARE)
    report('plans', 0, MAX_TRIES)
    for tried in range(1, MAX_TRIES + 1):
        tried_plan = meet_budget(plan, macs=share)
        trial = _Trial(
            tried_plan, tried_plan.totals['macs_after'] / plan.macs, judge.divergence(tried_plan)
        )
        report('plans', tried, MAX_TRIES)
        if trial.divergence <= limit:
            kept = trial
            if trial.divergence >= CLOSE * limit or share <= least:
                break
        else:
            # A plan has a little less than was asked for; to ask for as much gives the same one.
            failed = replace(trial, share=share)
        share = _next_share(kept, failed, limit, least)
        if any(t and abs(share - t.share) < MIN_STEP for t in (kept, failed)):
            break
    report('plans', MAX_TRIES, MAX_TRIES)
    if kept is None:
        assert failed is not None  # one of them was tried
        raise ValueError(
            f'no conversion was found whose divergence stays below {limit:g}: at '
            f'{failed.share:.3f} of the multiply-adds it is {failed.divergence:.3g}; allow more, '
            'give more calibration images, or convert other convs (include, keep_first)'
        )
    return replace(kept.plan, divergence={'limit': limit, 'measured': kept.divergence})


def _least_share(plan: ConversionPlan) -> float:
    """Least share of the multiply-adds that the variants with scores reach."""
    saved = 0
    for layer in undecided_layers(plan.layers):
        dense = layer.shape.dense()[1]
        settings = [Variant.from_key(key).settings(layer.settings) for key in layer.scores]
        saved += max([0, *(dense - layer.shape.ghost(own)[1] for own in settings)])
    return 1 - saved / plan.macs


def _next_share(kept: _Trial | None, failed: _Trial | None, limit: float, least: float) -> float:
    """Share at which the divergence should be a little below the limit."""
    aim = math.log(limit * (1 + CLOSE) / 2)
    if kept and failed:
        low, high = math.log(max(kept.divergence, 1e-9)), math.log(failed.divergence)
        part = min(0.9, max(0.1, (aim - low) / max(high - low, 1e-9)))
        return kept.share + part * (failed.share - kept.share)
    if failed:
        step = max(2 * MIN_STEP, (math.log(failed.divergence) - aim) / SLOPE)
        return min(failed.share + step, (1 + failed.share) / 2)
    assert kept is not None  # one of them was tried
    step = (aim - math.log(max(kept.divergence, 1e-9))) / SLOPE
    return max(least, kept.share - min(MAX_STEP, step))
