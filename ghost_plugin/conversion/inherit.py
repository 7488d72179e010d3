"""Weights of a dense conv for its Ghost: who is computed, who hangs on whom, with which filter.

A Ghost conv is linear, so each ghost map is a small filter of one primary map, and the best filter
for a pair is a least-squares problem in the correlations of the conv's own output maps. These come
from pictures, or, without any, from the kernels alone, as white input would give them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..layers.common import same_padding
from ..layers.ghost import GhostConv2d

Costs = Any  # (n, n) array of scipy's kind
RIDGE = 1e-6  # of a map's energy, keeps the small systems solvable


@dataclass
class Correlations:
    """Second moments of the output maps y of a conv, for filters of d x d pixels.

    Where the conv has a bias and pictures were seen, a constant 1 is one more term of each filter.

    Attributes:
        own: (n, t, t) moments of the t terms y_p(u + a) with each other.
        cross: (n, n, t) moments of these terms with y_j(u), p first.
        energy: (n,) E[y_j^2], less the squared mean where there is a constant term.
        constant: Whether the last term is the constant.
    """

    own: torch.Tensor
    cross: torch.Tensor
    energy: torch.Tensor
    constant: bool = False


def from_kernels(conv: nn.Conv2d, side: int) -> Correlations:
    """What white input would give: correlations of the kernels, shifted by output pixels."""
    kernel = _spread(conv.weight.detach().float(), conv.dilation)
    reach = side // 2
    moves = [reach * step for step in conv.stride]
    cross = _correlate(kernel, kernel, moves, conv.stride)  # (n_j, n_p, d, d)
    double = [2 * move for move in moves]
    wide = torch.stack(
        [_correlate(k[None], k[None], double, conv.stride)[0, 0] for k in kernel]
    )  # (n, 2d-1, 2d-1), at all differences of two shifts
    shifts = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = shifts[:, None] - shifts[None] + 2 * reach
    own = wide[:, apart[..., 0], apart[..., 1]]
    energy = kernel.square().sum((1, 2, 3))
    return Correlations(own, cross.flatten(2).transpose(0, 1), energy)


def _spread(kernel: torch.Tensor, dilation: tuple[int, int]) -> torch.Tensor:
    rows, columns = ((side - 1) * d + 1 for side, d in zip(kernel.shape[2:], dilation, strict=True))
    spread = kernel.new_zeros(*kernel.shape[:2], rows, columns)
    spread[:, :, :: dilation[0], :: dilation[1]] = kernel
    return spread


def _correlate(
    a: torch.Tensor, b: torch.Tensor, reach: list[int], step: tuple[int, int]
) -> torch.Tensor:
    """Correlation of all kernels in ``a`` with all in ``b`` at shifts within ``reach``."""
    padded = F.pad(a, (reach[1], reach[1], reach[0], reach[0]))
    return F.conv2d(padded, b, stride=step)


class Statistics:
    """Correlations of a conv's output maps, added up batch by batch; no map is kept."""

    def __init__(self, channels: int, side: int, constant: bool, device: torch.device) -> None:
        self.side, self.constant = side, constant
        terms = side**2 + constant
        self.own = torch.zeros(channels, terms, terms, device=device)
        self.cross = torch.zeros(channels, channels, terms, device=device)
        self.sum = torch.zeros(channels, device=device)
        self.squares = torch.zeros(channels, device=device)
        self.pixels = 0

    def add(self, maps: torch.Tensor) -> None:
        """Take in (N, channels, H, W)."""
        maps = maps.detach().float()
        flat = maps.transpose(0, 1).flatten(1)  # (n, N*H*W)
        padding = same_padding(self.side)
        for picture in maps:
            terms = F.unfold(picture[:, None], self.side, padding=padding)  # (n, d*d, H*W)
            if self.constant:
                terms = torch.cat((terms, torch.ones_like(terms[:, :1])), dim=1)
            self.own += terms @ terms.transpose(1, 2)
        for index, shifted in enumerate(_shifts(maps, self.side)):
            self.cross[:, :, index] += shifted.transpose(0, 1).flatten(1) @ flat.T
        if self.constant:
            self.cross[:, :, -1] += flat.sum(1)
        self.sum += flat.sum(1)
        self.squares += flat.square().sum(1)
        self.pixels += flat.shape[1]

    def correlations(self) -> Correlations:
        """Means over all pixels."""
        energy = self.squares / self.pixels
        if self.constant:
            energy = energy - (self.sum / self.pixels).square()
        return Correlations(self.own / self.pixels, self.cross / self.pixels, energy, self.constant)


def _shifts(maps: torch.Tensor, side: int) -> Iterator[torch.Tensor]:
    reach, (height, width) = side // 2, maps.shape[2:]
    padded = F.pad(maps, (reach, reach, reach, reach))
    for row in range(side):
        for column in range(side):
            yield padded[:, :, row : row + height, column : column + width]


def filters(stats: Correlations) -> tuple[torch.Tensor, torch.Tensor]:
    """Best filter (n, n, t) for every pair, primary first, and what is left of the energy.

    Returns:
        The filters, and (n, n) relative squared errors within 0..1.
    """
    diagonal = stats.own.diagonal(dim1=1, dim2=2)
    ridge = torch.diag_embed(RIDGE * diagonal.mean(1, keepdim=True).expand_as(diagonal) + 1e-12)
    best = torch.linalg.solve(stats.own + ridge, stats.cross.transpose(1, 2)).transpose(1, 2)
    explained = (best * stats.cross).sum(2)
    if stats.constant:  # the squared mean is explained by the constant
        explained = explained - stats.cross[:, :, -1].square()
    return best, (1 - explained / stats.energy.clamp_min(1e-12)).clamp(0, 1)


def choose(errors: torch.Tensor, primary: int, copies: int) -> list[list[int]]:
    """Who is computed and who hangs on whom: rows of a primary and its ghosts, best use of both.

    Pairs are taken in the order of their errors; then, with the primaries fixed, all ghosts are
    assigned anew at the least total error, and pairs turn round where that helps, until nothing
    changes.

    Args:
        errors: (n, n) relative error of map j as a filter of map p, p first.
        primary: Maps to compute.
        copies: Ghosts that a primary map can have.

    Returns:
        One list per primary map, those with most ghosts first.
    """
    cost = errors.double().cpu().numpy()
    families = _greedy(cost, primary, copies)
    total = float('inf')
    while True:
        families = _assign(cost, sorted(families), copies)
        families = dict(_turned(cost, family) for family in families.items())
        now = sum(cost[p, j] for p, ghosts in families.items() for j in ghosts)
        if now >= total - 1e-9:
            break
        total = now
    rows = [[p, *ghosts] for p, ghosts in families.items()]
    return sorted(rows, key=lambda row: (-len(row), row[0]))


def inherit(conv: nn.Conv2d, ghost: GhostConv2d, stats: Correlations) -> float:
    """Give ``ghost`` the weights of ``conv``: copies of the primary filters, fitted cheap ones.

    Args:
        conv: The dense conv.
        ghost: Its Ghost with ``permuted=True`` and the same groups; a depthwise cheap operation.
        stats: Correlations of the maps that ``conv`` gives.

    Returns:
        Squared error of the maps relative to their energy, mean over the maps.
    """
    best, errors = filters(stats)
    size = conv.out_channels // conv.groups
    primary, copies = ghost.primary_conv.out_channels // conv.groups, ghost.copies
    rows = []
    for start in range(0, conv.out_channels, size):
        part = slice(start, start + size)
        chosen = choose(errors[part, part], primary, copies)
        rows += [[start + index for index in row] for row in chosen]
    _write(conv, ghost, rows, best, stats.constant)
    lost = sum(float(errors[row[0], j]) for row in rows for j in row[1:])
    return lost / conv.out_channels


@torch.no_grad()
def _write(
    conv: nn.Conv2d,
    ghost: GhostConv2d,
    rows: list[list[int]],
    best: torch.Tensor,
    constant: bool,
) -> None:
    firsts, side = [row[0] for row in rows], ghost.cheap_operation.kernel_size[0]
    ghost.primary_conv.weight.copy_(conv.weight[firsts])
    kernels = torch.zeros_like(ghost.cheap_operation.weight)
    order = torch.zeros(conv.out_channels, dtype=torch.long)
    biases = torch.zeros(len(kernels), dtype=torch.float)
    for index, (first, *others) in enumerate(rows):
        order[first] = index
        for copy, j in enumerate(others):
            place = index * ghost.copies + copy
            order[j] = len(rows) + place
            kernels[place, 0] = best[first, j, : side**2].view(side, side)
            if constant:
                biases[place] = best[first, j, -1]
            elif conv.bias is not None:
                biases[place] = conv.bias[j] - conv.bias[first] * best[first, j].sum()
    ghost.cheap_operation.weight.copy_(kernels)
    ghost.order.copy_(order)
    if conv.bias is not None:
        ghost.primary_conv.bias.copy_(conv.bias[firsts])
        ghost.cheap_operation.bias.copy_(biases)


def _greedy(cost: Costs, primary: int, copies: int) -> dict[int, list[int]]:
    number = len(cost)
    families: dict[int, list[int]] = {}
    ghosts: set[int] = set()
    for flat in cost.argsort(axis=None, kind='stable'):
        if len(ghosts) == number - primary:
            break
        p, j = divmod(int(flat), number)
        if p == j or p in ghosts or j in ghosts or j in families:
            continue
        known = p in families or len(families) < primary
        if known and len(families.get(p, ())) < copies:
            families.setdefault(p, []).append(j)
            ghosts.add(j)
    return {p: families.get(p, []) for p in range(number) if p not in ghosts}


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
