"""Assignment of ghost channels to primary channels: clusters of a primary and its ghosts."""

from functools import cached_property
from typing import Any

import torch

Costs = Any  # (n, n) numpy array
MAX_ROUNDS, MIN_GAIN = 20, 1e-3  # assignments, and the share of the error that one must take away
MAX_CANDIDATES = 32  # primary channels that are considered for each ghost
ROUNDING_ERROR = 1e-6  # share of a channel's energy below which pairs are equally good


class PairCosts:
    """Errors of pairs of channels.

    Args:
        errors: (n, n) error of channel j as a filter of channel p, p first.
    """

    def __init__(self, errors: torch.Tensor) -> None:
        self.array: Costs = errors.double().nan_to_num(nan=1.0).cpu().numpy()

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs (p, j) in the order of their errors; for each j the best p only."""
        return _pairs(self.array)


def assign_ghosts(errors: torch.Tensor, primary: int, copies: int) -> list[list[int]]:
    """Assign each ghost channel to a primary channel so that the total error is small.

    Pairs are taken in the order of their errors. Then, until little changes, all ghosts are
    assigned anew to the same primaries at the least total error, and each cluster makes the member
    its primary that predicts the others best.

    Args:
        errors: As in :class:`PairCosts`.
        primary: Channels to compute by convolution.
        copies: Ghosts that a primary channel can have.

    Returns:
        A list for each primary channel: itself, then its ghosts; longest lists first.
    """
    return assign_by_costs(PairCosts(errors), primary, copies)


def assign_by_costs(costs: PairCosts, primary: int, copies: int) -> list[list[int]]:
    """:func:`assign_ghosts` with errors that serve several numbers of channels."""
    cost = costs.array
    chosen = sorted(_greedy(costs, primary, copies))
    total = float('inf')
    for _ in range(MAX_ROUNDS):
        primaries = chosen
        clusters = _swap_primaries(cost, _assign(cost, primaries, copies))
        now = sum(cost[p, j] for p, ghosts in clusters.items() for j in ghosts)
        if now >= total - MIN_GAIN * abs(total):
            break
        total, chosen = now, sorted(clusters)
    if copies > 1 and primary * (copies + 1) == len(cost):
        # The ghosts of a primary channel in the order that the plain problem gives them.
        clusters = _swap_primaries(cost, _assign(cost, primaries, copies, reduced=False))
    rows = [[p, *ghosts] for p, ghosts in clusters.items()]
    return sorted(rows, key=lambda row: (-len(row), row[0]))


def _greedy(costs: PairCosts, primary: int, copies: int) -> dict[int, list[int]]:
    number = len(costs.array)
    clusters: dict[int, list[int]] = {}
    ghosts: set[int] = set()
    for p, j in costs.pairs:
        if len(ghosts) == number - primary:
            break
        if p in ghosts or j in ghosts or j in clusters:
            continue
        known = p in clusters or len(clusters) < primary
        if known and len(clusters.get(p, ())) < copies:
            clusters.setdefault(p, []).append(j)
            ghosts.add(j)
    rest = [p for p in range(number) if p not in ghosts and p not in clusters]
    # If the best pairs did not make enough ghosts, the others are assigned later.
    chosen = [*clusters, *rest][:primary]
    return {p: clusters.get(p, []) for p in chosen}


def _pairs(cost: Costs) -> list[tuple[int, int]]:
    import numpy as np

    others = cost.copy()
    np.fill_diagonal(others, np.inf)
    number = min(MAX_CANDIDATES, len(cost))
    best = np.argpartition(others, number - 1, axis=0)[:number].copy()  # (number, n) of p
    js = np.broadcast_to(np.arange(len(cost)), best.shape)
    # Pairs that are equally good are ordered by primary; if rounding decided, channels that are
    # all multiples of one could end in several clusters.
    clear = np.maximum(others[best, js], ROUNDING_ERROR / len(cost))
    order = np.lexsort((js.ravel(), best.ravel(), clear.ravel()))
    order = order[best.ravel()[order] != js.ravel()[order]]
    return list(zip(best.ravel()[order].tolist(), js.ravel()[order].tolist(), strict=True))


def _assign(
    cost: Costs, primaries: list[int], copies: int, reduced: bool = True
) -> dict[int, list[int]]:
    from scipy.optimize import linear_sum_assignment

    taken = set(primaries)
    ghosts = [j for j in range(len(cost)) if j not in taken]
    slots = [p for p in primaries for _ in range(copies)]
    errors = cost[slots][:, ghosts]
    if reduced and len(slots) == len(ghosts):  # the same clusters several times sooner
        errors -= errors.min(0)
    rows, columns = linear_sum_assignment(errors)
    clusters: dict[int, list[int]] = {p: [] for p in primaries}
    for row, column in zip(rows, columns, strict=True):
        clusters[slots[row]].append(ghosts[column])
    return clusters


def _swap_primaries(cost: Costs, clusters: dict[int, list[int]]) -> dict[int, list[int]]:
    """Make the member of each cluster its primary that predicts the others best."""
    swapped = {}
    for members in ([p, *ghosts] for p, ghosts in clusters.items()):
        errors = [sum(cost[p, j] for j in members if j != p) for p in members]
        best = members[errors.index(min(errors))]
        swapped[best] = [j for j in members if j != best]
    return swapped
