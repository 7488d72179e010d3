"""Stage 3, behind the scores: the joint effect of many conversions, which scores of one leave out.

With images the layers behind a converted one are refitted to what reaches them, and each takes back
a part of its error. So an early conv counts less than a late one: its scores are multiplied by
(1 - share)^n for n convs behind. How much is taken back differs by network, so a few shares are
tried, and the plans that follow are applied and measured (one coefficient, where SPDY searches for
one per layer).

Measured as divergence at 80 % of the multiply-adds with the shares 0, 0.03 and 0.06:
EfficientNet-Lite0 0.150, 0.117, 0.107 (200 calibration images, 300 others; at 90 % 0.024, 0.026 and
0.026); MobileNetV2 of width 0.35 on digits 0.071, 0.069, 0.111; RegNetX-200MF on digits at 50 %
0.012, 0.011, 0.011.

Source: Frantar and Alistarh, SPDY, ICML 2022 (arXiv 2201.13096).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from .judging import JudgingError, make_judge, standard_error
from .plan import ConversionPlan
from .progress import Report

SHARES = (0.0, 0.03, 0.06)
# Taken where no other share gains clearly. In a draw of EfficientNet-Lite0 whose 29 judging images
# saw no difference beyond chance, 0 left a divergence of 0.153 on other images, 0.03 one of 0.083.
USUAL = 0.03
UNMEASURED = 0.0  # where plans cannot be measured
LEAST = 0.05  # of the scores that remains
MAX_IMAGES = 96  # that plans are fitted to and measured on


def discounted(plan: ConversionPlan, share: float) -> ConversionPlan:
    """Multiply the scores of each layer for what the layers behind take back.

    Args:
        plan: A plan with scores.
        share: Of the error, for each conv behind.
    """
    last = len(plan.layers) - 1
    factors = [max(LEAST, (1 - share) ** (last - index)) for index in range(last + 1)]
    return replace(
        plan,
        layers=tuple(
            replace(layer, scores={key: factor * score for key, score in layer.scores.items()})
            for layer, factor in zip(plan.layers, factors, strict=True)
        ),
    )


def find_discount(
    model: nn.Module,
    plan: ConversionPlan,
    meet: Callable[[ConversionPlan], ConversionPlan],
    batches: Sequence[Any],
    report: Report,
) -> ConversionPlan:
    """Discount scores by the share whose plan is measured to diverge least.

    Few images judge, so another share than the usual one has to gain more than chance would.

    Args:
        model: The original; it is left as it was.
        plan: A plan with scores.
        meet: Gives the plan that meets the budget.
        batches: Calibration batches.
        report: Gets the number of plans that were tried.

    Returns:
        The plan with discounted scores, which meets no budget yet.
    """
    candidates = {share: discounted(plan, share) for share in SHARES}
    met = {share: meet(candidate) for share, candidate in candidates.items()}
    decided = [[(layer.decision, layer.settings) for layer in made.layers] for made in met.values()]
    if all(own == decided[0] for own in decided):
        return candidates[USUAL]
    try:
        judge = make_judge(model, batches, MAX_IMAGES)
    except JudgingError:
        return candidates[UNMEASURED]
    measured = {}
    report('allocation', 0, len(SHARES))
    for share, made in met.items():
        measured[share] = judge.of_images(made)
        report('allocation', len(measured), len(SHARES))
    best = min(measured, key=lambda share: float(measured[share].mean()))
    gain = measured[USUAL] - measured[best]  # of each image
    return candidates[best if gain.mean() > standard_error(gain) else USUAL]
