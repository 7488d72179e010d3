"""Assignment of ghosts that mix several primary channels: groups of primary channels and ghosts.

A ghost is predicted from the primary channels of its group, so its error is what they leave of its
variance. Primary channels are those that a pivoted Cholesky decomposition of the covariance takes
first (an interpolative decomposition). Groups grow by one primary channel a round, by orthogonal
matching pursuit for all groups together: an assignment problem decides which group gets which.

Source: Chee et al., Model Preserving Compression for Neural Networks, NeurIPS 2022
(arXiv 2108.00065), for the decomposition.
"""

from dataclasses import dataclass

import torch

from ...layers.ghost import GhostLayout

MAX_ROUNDS, MIN_GAIN = 4, 1e-3  # assignments, and the share of the error that one must take away
RIDGE_SHARE = 1e-6  # of the largest variance; more where the moments' rounding needs it


@dataclass(frozen=True)
class Groups:
    """Channels of a Ghost conv by their role.

    Attributes:
        primaries: Primary channels of each group.
        ghosts: Ghosts of each group.
        others: Primary channels without ghosts.
    """

    primaries: list[list[int]]
    ghosts: list[list[int]]
    others: list[int]


def group_channels(covariances: torch.Tensor, layout: GhostLayout) -> Groups:
    """Choose primary channels, and groups of them with their ghosts, of little total error.

    Args:
        covariances: (convs, n, n) of the channels of convs that get the same groups, in float64.
        layout: Numbers of channels; its groups hold more than one primary channel.
    """
    covariance = _positive_definite(covariances)
    primary = pivots(covariance, layout.primary)
    taken = set(primary)
    ghosts = [channel for channel in range(covariance.shape[1]) if channel not in taken]
    number = layout.num_ghosted // layout.group_size
    if layout.group_size == layout.primary:
        return Groups([primary], [ghosts], [])
    importance = _importance(covariance, primary, ghosts)
    clusters = _similar(importance, ghosts, number, layout.ghosts_per_group)
    best, least = None, float('inf')
    for _ in range(MAX_ROUNDS):
        candidates = [
            _by_importance(importance, primary, ghosts, clusters, layout.group_size),
            _by_pursuit(covariance, primary, clusters, layout.group_size),
        ]
        tried = []
        for sets in candidates:
            errors = residuals(covariance, sets)
            total = sum(float(errors[index, own].sum()) for index, own in enumerate(clusters))
            tried.append((total, sets, errors))
        _, sets, errors = min(tried, key=lambda one: one[0])
        clusters = _assign(errors, ghosts, layout.ghosts_per_group)
        total = sum(float(errors[index, own].sum()) for index, own in enumerate(clusters))
        if total >= least * (1 - MIN_GAIN):
            break
        used = {channel for group in sets for channel in group}
        best, least = Groups(sets, clusters, [p for p in primary if p not in used]), total
    assert best is not None
    return best


def _positive_definite(covariances: torch.Tensor) -> torch.Tensor:
    """Add the least ridge with which all systems of some channels can be solved."""
    found = []
    for covariance in covariances:
        covariance = (covariance + covariance.T) / 2
        ridge = RIDGE_SHARE * covariance.diagonal().max().clamp_min(1e-30)
        while True:
            solvable = covariance + torch.diag_embed(ridge.expand(len(covariance)))
            if not torch.linalg.cholesky_ex(solvable).info:
                break
            ridge = 10 * ridge
        found.append(solvable)
    return torch.stack(found)


def pivots(covariance: torch.Tensor, number: int) -> list[int]:
    """Channels that a pivoted Cholesky decomposition takes first: each has the most variance left.

    Args:
        covariance: (convs, n, n).
        number: How many.
    """
    left = covariance.diagonal(dim1=1, dim2=2).clone()  # (convs, n)
    rows = covariance.new_zeros(len(covariance), number, covariance.shape[1])
    chosen: list[int] = []
    for index in range(number):
        pivot = int(left.sum(0).argmax())
        chosen.append(pivot)
        known = (rows[:, None, :index, pivot] @ rows[:, :index])[:, 0]
        row = covariance[:, pivot] - known
        rows[:, index] = row / left[:, pivot, None].clamp_min(1e-30).sqrt()
        left -= rows[:, index].square()
        left[:, chosen] = -torch.inf
    return chosen


def residuals(covariance: torch.Tensor, sets: list[list[int]]) -> torch.Tensor:
    """Variance of each channel that each set of channels leaves when it predicts that channel.

    Args:
        covariance: (convs, n, n).
        sets: Channels, as many in each set.

    Returns:
        (sets, n), the sum over convs.
    """
    explained = _weights(covariance, sets) * covariance[:, torch.tensor(sets)]
    return (covariance.diagonal(dim1=1, dim2=2)[:, None] - explained.sum(2)).sum(0)


def _weights(covariance: torch.Tensor, sets: list[list[int]]) -> torch.Tensor:
    """(convs, sets, size, n) weights with which each set predicts each channel."""
    index = torch.tensor(sets)
    own = covariance[:, index[:, :, None], index[:, None]]
    return torch.cholesky_solve(covariance[:, index], torch.linalg.cholesky(own))


def _importance(covariance: torch.Tensor, primary: list[int], ghosts: list[int]) -> torch.Tensor:
    """(primary, ghosts) variance of each ghost that is lost without one primary channel."""
    rows = covariance[:, primary]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(rows[:, :, primary]))
    weights = inverse @ rows[:, :, ghosts]
    return (weights.square() / inverse.diagonal(dim1=1, dim2=2)[..., None]).sum(0)


def _similar(
    importance: torch.Tensor, ghosts: list[int], number: int, size: int
) -> list[list[int]]:
    """Cut ghosts into clusters to which the same primary channels are important."""
    if size == 1:
        return [[ghost] for ghost in ghosts]
    alike = torch.nn.functional.normalize(importance.sqrt(), dim=0)
    alike = alike.T @ alike
    energy = importance.sum(0)
    free = torch.ones(len(ghosts), dtype=torch.bool)
    clusters = []
    for index in range(number):
        few = min(size, int(free.sum()) - (number - index - 1))  # every group gets a ghost
        first = int(torch.where(free, energy, -torch.inf).argmax())
        free[first] = False
        others = torch.where(free, alike[first], -torch.inf).topk(few - 1).indices
        free[others] = False
        clusters.append([ghosts[first], *(ghosts[i] for i in others.tolist())])
    return clusters


def _by_importance(
    importance: torch.Tensor,
    primary: list[int],
    ghosts: list[int],
    clusters: list[list[int]],
    size: int,
) -> list[list[int]]:
    """Give each cluster of ghosts the primary channels that are the most important to it."""
    from scipy.optimize import linear_sum_assignment

    place = {ghost: index for index, ghost in enumerate(ghosts)}
    gain = torch.stack([importance[:, [place[j] for j in own]].sum(1) for own in clusters])
    slots = [group for group in range(len(clusters)) for _ in range(size)]
    sets: list[list[int]] = [[] for _ in clusters]
    for row, column in zip(*linear_sum_assignment(gain[slots].numpy(), maximize=True), strict=True):
        sets[slots[row]].append(primary[column])
    return sets


def _by_pursuit(
    covariance: torch.Tensor, primary: list[int], clusters: list[list[int]], size: int
) -> list[list[int]]:
    """Give each cluster of ghosts its primary channels, the one that explains most each round."""
    from scipy.optimize import linear_sum_assignment

    sets: list[list[int]] = [[] for _ in clusters]
    free = sorted(primary)
    for _ in range(size):
        gains = []
        weights = _weights(covariance, sets)[..., free] if sets[0] else None
        for index, ghosts in enumerate(clusters):
            cross = covariance[:, ghosts][:, :, free]
            variance = covariance.diagonal(dim1=1, dim2=2)[:, free]
            if weights is not None:
                chosen = covariance[:, sets[index]]
                cross = cross - chosen[:, :, ghosts].mT @ weights[:, index]
                variance = variance - (weights[:, index] * chosen[:, :, free]).sum(1)
            gains.append((cross.square().sum(1) / variance.clamp_min(1e-30)).sum(0))
        gain = torch.stack(gains).numpy()
        for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
            sets[row].append(free[column])
        used = {channel for own in sets for channel in own}
        free = [channel for channel in free if channel not in used]
    return sets


def _assign(errors: torch.Tensor, ghosts: list[int], size: int) -> list[list[int]]:
    """Assign ghosts to groups at the least total error."""
    from scipy.optimize import linear_sum_assignment

    slots = [group for group in range(len(errors)) for _ in range(size)]
    rows, columns = linear_sum_assignment(errors[slots][:, ghosts].numpy())
    clusters: list[list[int]] = [[] for _ in range(len(errors))]
    for row, column in zip(rows, columns, strict=True):
        clusters[slots[row]].append(ghosts[column])
    return clusters
