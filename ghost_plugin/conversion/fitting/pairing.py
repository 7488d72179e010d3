"""Who is computed and who hangs on whom: families of one primary map and its ghosts."""

from collections.abc import Iterator
from typing import Any

import torch

Costs = Any  # (n, n) array of scipy's kind
TURNS, GAIN = 20, 1e-3  # assignments at the most, and the share that another one must gain
BEST = 32  # primary maps that a map looks at as its ghost
NOISE = 1e-6  # share of a map's energy below which errors are rounding, and pairs equally good


def assign_ghosts(errors: torch.Tensor, primary: int, copies: int) -> list[list[int]]:
    """Who is computed and who hangs on whom: rows of a primary and its ghosts, best use of both.

    Pairs are taken in the order of their errors; then, with the primaries fixed, all ghosts are
    assigned anew at the least total error, and pairs turn round where that helps, until little
    changes.

    Args:
        errors: (n, n) relative error of map j as a filter of map p, p first.
        primary: Maps to compute.
        copies: Ghosts that a primary map can have.

    Returns:
        One list per primary map, those with most ghosts first.
    """
    cost = errors.double().nan_to_num(nan=1.0).cpu().numpy()
    families = _greedy(cost, primary, copies)
    total = float('inf')
    for _ in range(TURNS):
        families = _assign(cost, sorted(families), copies)
        families = dict(_turned(cost, family) for family in families.items())
        now = sum(cost[p, j] for p, ghosts in families.items() for j in ghosts)
        if now >= total - GAIN * abs(total):
            break
        total = now
    rows = [[p, *ghosts] for p, ghosts in families.items()]
    return sorted(rows, key=lambda row: (-len(row), row[0]))


def _greedy(cost: Costs, primary: int, copies: int) -> dict[int, list[int]]:
    number = len(cost)
    families: dict[int, list[int]] = {}
    ghosts: set[int] = set()
    for p, j in _pairs(cost):
        if len(ghosts) == number - primary:
            break
        if p in ghosts or j in ghosts or j in families:
            continue
        known = p in families or len(families) < primary
        if known and len(families.get(p, ())) < copies:
            families.setdefault(p, []).append(j)
            ghosts.add(j)
    rest = [p for p in range(number) if p not in ghosts and p not in families]
    # Where the best pairs did not make ghosts enough, what is left over is assigned later.
    chosen = [*families, *rest][:primary]
    return {p: families.get(p, []) for p in chosen}


def _pairs(cost: Costs) -> Iterator[tuple[int, int]]:
    """Pairs (p, j), cheapest first: for each j the best p only, which is where ghosts come from."""
    import numpy as np

    alone = cost.copy()
    np.fill_diagonal(alone, np.inf)
    number = min(BEST, len(cost))
    best = np.argpartition(alone, number - 1, axis=0)[:number].copy()  # (BEST, n) of p
    js = np.broadcast_to(np.arange(len(cost)), best.shape)
    # Of pairs that are equally good those of one primary follow each other; if rounding decided,
    # maps that are all multiples of one could end as several families.
    clear = np.maximum(alone[best, js], NOISE / len(cost))
    order = np.lexsort((js.ravel(), best.ravel(), clear.ravel()))
    order = order[best.ravel()[order] != js.ravel()[order]]
    return zip(best.ravel()[order].tolist(), js.ravel()[order].tolist(), strict=True)


def _assign(cost: Costs, primaries: list[int], copies: int) -> dict[int, list[int]]:
    from scipy.optimize import linear_sum_assignment

    taken = set(primaries)
    ghosts = [j for j in range(len(cost)) if j not in taken]
    slots = [p for p in primaries for _ in range(copies)]
    rows, columns = linear_sum_assignment(cost[slots][:, ghosts])
    families: dict[int, list[int]] = {p: [] for p in primaries}
    for row, column in zip(rows, columns, strict=True):
        families[slots[row]].append(ghosts[column])
    return families


def _turned(cost: Costs, family: tuple[int, list[int]]) -> tuple[int, list[int]]:
    """The member of a family that serves the others best as primary, and the others."""
    members = [family[0], *family[1]]
    best = min(members, key=lambda p: sum(cost[p, j] for j in members if j != p))
    return best, [j for j in members if j != best]
