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


@dataclass(frozen=True)
class Decomposition:
    """Pivoted Cholesky decomposition of covariances; it serves all ratios.

    Attributes:
        covariance: (convs, n, n) with a ridge.
        order: Channels; each has the most variance left by those before it.
        factor: (convs, k, k) lower triangle of the covariance of the first k of these.
    """

    covariance: torch.Tensor
    order: list[int]
    factor: torch.Tensor

    def inverse(self, number: int) -> torch.Tensor:
        """(convs, number, number) inverse of the covariance of the first channels."""
        return torch.cholesky_inverse(self.factor[:, :number, :number])


def group_channels(covariances: torch.Tensor, layout: GhostLayout) -> Groups:
    """Choose primary channels, and groups of them with their ghosts, of little total error.

    Args:
        covariances: (convs, n, n) of the channels of convs that get the same groups, in float64.
        layout: Numbers of channels; its groups hold more than one primary channel.
    """
    return group_decomposed(decompose(covariances, layout.primary), layout)


def decompose(covariances: torch.Tensor, number: int) -> Decomposition:
    """Decompose covariances, so that groups can be chosen.

    Args:
        covariances: As in :func:`group_channels`.
        number: Primary channels at the most; several convs take time for each of them.
    """
    covariance = _positive_definite(covariances.cpu())
    order = pivots(covariance, number)
    factor = torch.linalg.cholesky(covariance[:, order][:, :, order])
    rest = sorted(set(range(covariance.shape[1])) - set(order))
    return Decomposition(covariance, order + rest, factor)


def group_decomposed(decomposition: Decomposition, layout: GhostLayout) -> Groups:
    """Choose groups from a decomposition.

    Args:
        decomposition: Of as many channels at least as are primary.
        layout: As in :func:`group_channels`.
    """
    covariance, order = decomposition.covariance, decomposition.order
    primary, ghosts = order[: layout.primary], sorted(order[layout.primary :])
    number = layout.num_ghosted // layout.group_size
    if layout.group_size == layout.primary:
        return Groups([primary], [ghosts], [])
    importance = _importance(decomposition, primary, ghosts)
    clusters = _similar(importance, ghosts, number, layout.ghosts_per_group)
    best, least = None, float('inf')
    for _ in range(MAX_ROUNDS):
        sets = _by_importance(importance, primary, ghosts, clusters, layout.group_size)
        candidates = [
            (sets, residuals(covariance, sets)),
            _by_pursuit(covariance, primary, clusters, layout.group_size),
        ]
        sets, errors = min(candidates, key=lambda one: _total(one[1], clusters))
        clusters = _assign(errors, ghosts, layout.ghosts_per_group)
        total = _total(errors, clusters)
        if total >= least * (1 - MIN_GAIN):
            break
        used = {channel for group in sets for channel in group}
        best, least = Groups(sets, clusters, [p for p in primary if p not in used]), total
    assert best is not None
    return best


def _total(errors: torch.Tensor, clusters: list[list[int]]) -> float:
    """Sum of the errors of all ghosts in their groups."""
    return sum(float(errors[index, own].sum()) for index, own in enumerate(clusters))


def _positive_definite(covariances: torch.Tensor) -> torch.Tensor:
    """Add the least ridge with which all systems of some channels can be solved."""
    found = (covariances + covariances.mT).nan_to_num() / 2
    for covariance in found:
        ridge = RIDGE_SHARE * covariance.diagonal().max().clamp_min(1e-30)
        covariance.diagonal().add_(ridge)
        while torch.linalg.cholesky_ex(covariance).info:
            covariance.diagonal().add_(9 * ridge)  # ten times the ridge
            ridge = 10 * ridge
    return found


def pivots(covariance: torch.Tensor, number: int) -> list[int]:
    """Channels that a pivoted Cholesky decomposition takes first: each has the most variance left.

    Args:
        covariance: (convs, n, n).
        number: How many.
    """
    if len(covariance) == 1:
        from scipy.linalg.lapack import dpstrf

        order = dpstrf(covariance[0].numpy(), lower=1)[1]
        return [int(channel) - 1 for channel in order[:number]]
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
    index = torch.tensor(sets)
    factor = torch.linalg.cholesky(covariance[:, index[:, :, None], index[:, None]])
    rows = torch.linalg.solve_triangular(factor, covariance[:, index], upper=False)
    left = covariance.diagonal(dim1=1, dim2=2)[:, None] - rows.square().sum(2)
    return left.sum(0)


def _importance(
    decomposition: Decomposition, primary: list[int], ghosts: list[int]
) -> torch.Tensor:
    """(primary, ghosts) variance of each ghost that is lost without one primary channel."""
    inverse = decomposition.inverse(len(primary))
    weights = inverse @ decomposition.covariance[:, primary][:, :, ghosts]
    return (weights.square_() / inverse.diagonal(dim1=1, dim2=2)[..., None]).sum(0)


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
    owners = torch.tensor([group for group, own in enumerate(clusters) for _ in own])
    rows = importance.T[[place[ghost] for own in clusters for ghost in own]]
    gain = rows.new_zeros(len(clusters), len(primary)).index_add_(0, owners, rows).T
    slots = [group for group in range(len(clusters)) for _ in range(size)]
    sets: list[list[int]] = [[] for _ in clusters]
    # One row for each channel: with equal rows, those of one group, it takes several times longer.
    for row, column in zip(
        *linear_sum_assignment(gain[:, slots].numpy(), maximize=True), strict=True
    ):
        sets[slots[column]].append(primary[row])
    return sets


def _by_pursuit(
    covariance: torch.Tensor, primary: list[int], clusters: list[list[int]], size: int
) -> tuple[list[list[int]], torch.Tensor]:
    """Give each cluster of ghosts its primary channels, the one that explains most each round.

    Returns:
        The sets, and their :func:`residuals`. These come from a Cholesky decomposition for each
        cluster, which grows by one row each round.
    """
    from scipy.optimize import linear_sum_assignment

    convs, number = len(covariance), len(clusters)
    owners = torch.tensor([index for index, own in enumerate(clusters) for _ in own])
    ghosts = torch.tensor([ghost for own in clusters for ghost in own])
    free = torch.tensor(sorted(primary))
    left = covariance.diagonal(dim1=1, dim2=2)[:, None].repeat(1, number, 1)
    rows = covariance.new_zeros(convs, number, size, covariance.shape[1])
    cross = covariance[:, ghosts][:, :, free]  # what the sets leave of it
    found = []
    for step in range(size):
        gain = cross.new_zeros(convs, number, len(free)).index_add_(1, owners, cross.square())
        gain = (gain / left[:, :, free].clamp_min(1e-30)).sum(0)
        columns = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
        chosen = free[columns]
        at_chosen = chosen[:, None].expand(convs, -1, 1)
        known = rows[:, :, :step].gather(3, at_chosen[:, :, None].expand(-1, -1, step, 1))
        row = covariance[:, chosen] - (known * rows[:, :, :step]).sum(2)
        row = row / left.gather(2, at_chosen).clamp_min(1e-30).sqrt()
        rows[:, :, step] = row
        left -= row.square()
        kept = torch.ones(len(free), dtype=torch.bool).index_fill(0, columns, False)
        free = free[kept]
        cross = cross[:, :, kept] - row[:, owners, ghosts, None] * row[:, :, free][:, owners]
        found.append(chosen)
    return torch.stack(found, 1).tolist(), left.sum(0)


def _assign(errors: torch.Tensor, ghosts: list[int], size: int) -> list[list[int]]:
    """Assign ghosts to groups at the least total error."""
    from scipy.optimize import linear_sum_assignment

    slots = [group for group in range(len(errors)) for _ in range(size)]
    # One row for each ghost, as above.
    rows, columns = linear_sum_assignment(errors.T[ghosts][:, slots].numpy())
    clusters: list[list[int]] = [[] for _ in range(len(errors))]
    for row, column in zip(rows, columns, strict=True):
        clusters[slots[column]].append(ghosts[row])
    return clusters
