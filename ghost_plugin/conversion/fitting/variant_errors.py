"""Errors of the first weights of several Ghosts of one conv, without making the weights.

Pairs of channels in the order of their errors serve all ratios, and so does one decomposition of
the covariance where ghosts mix several primary channels.
"""

from functools import cached_property

import torch

from ...layers.ghost import GhostLayout
from .channel_statistics import ChannelMoments
from .grouping import Decomposition, decompose, group_decomposed
from .initialization import channel_covariance, relative_errors, rounding_error
from .pairing import PairCosts, assign_by_costs


class VariantErrors:
    """Errors of Ghosts by their numbers of channels.

    Args:
        moments: Of the output of the conv.
        groups: Of the conv.
    """

    def __init__(self, moments: ChannelMoments, groups: int) -> None:
        self.moments, self.size = moments, len(moments.own) // groups

    def error(self, layout: GhostLayout, *, fitted: bool = True) -> float:
        """Error as :func:`ghost_plugin.conversion.fitting.initialization.initialize_ghost` has it.

        Args:
            layout: Numbers of channels of the Ghost.
            fitted: False for ghosts made by shifts, which count as lost.
        """
        if layout.group_size > 1:
            return self._mixed_error(layout)
        groups = len(self._costs)
        primaries: list[int] = []
        ghosts: list[int] = []
        for index, costs in enumerate(self._costs):
            start = index * self.size
            for first, *others in assign_by_costs(
                costs, layout.primary // groups, layout.ghosts_per_group
            ):
                primaries += [start + first] * len(others)
                ghosts += [start + other for other in others]
        if fitted:
            return float(self._errors[primaries, ghosts].sum())
        shares = self.moments.energy.double()
        return float((shares[ghosts] / shares.sum().clamp_min(1e-30)).sum())

    @cached_property
    def _errors(self) -> torch.Tensor:
        return relative_errors(self.moments)

    @cached_property
    def _costs(self) -> list[PairCosts]:
        number = len(self._errors)
        groups = [slice(start, start + self.size) for start in range(0, number, self.size)]
        return [PairCosts(self._errors[group, group]) for group in groups]

    @cached_property
    def _covariance(self) -> torch.Tensor:
        return channel_covariance(self.moments).cpu()

    @cached_property
    def _decomposition(self) -> Decomposition:
        return decompose(self._covariance[None], len(self._covariance))

    def _mixed_error(self, layout: GhostLayout) -> float:
        covariance, variance = self._covariance, self._covariance.diagonal()
        groups = group_decomposed(self._decomposition, layout)
        if len(groups.primaries) == 1:
            (own,), (ghosts,) = groups.primaries, groups.ghosts
            cross = covariance[own][:, ghosts]
            factor = self._decomposition.factor[0, : len(own), : len(own)]
            weights = torch.cholesky_solve(cross, factor)
            # The error of these weights, which have a ridge, is that of the best but for rounding.
            left = cross.mul_(2).sub_(covariance[own][:, own] @ weights).mul_(weights)
            lost = variance[ghosts] - left.sum(0)
        else:
            sets = torch.tensor(groups.primaries)
            inside = covariance[sets[:, :, None], sets[:, None]]
            inverse = torch.linalg.pinv(inside, rtol=rounding_error(self.moments), hermitian=True)
            explained = ((inverse @ covariance[sets]) * covariance[sets]).sum(1)  # (sets, n)
            lost = torch.cat(
                [variance[own] - explained[i, own] for i, own in enumerate(groups.ghosts)]
            )
        return float(lost.clamp_min(0).sum() / variance.sum().clamp_min(1e-30))
