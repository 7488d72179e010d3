"""First weights of a Ghost conv: copies of primary kernels, and the best cheap kernels for them."""

from collections.abc import Sequence
from itertools import chain
from typing import cast

import torch
from torch import nn

from ...layers.ghost import GhostConv2d, GhostLayout
from .channel_statistics import ChannelMoments, pair_filters, pairwise_errors
from .grouping import Groups, group_channels
from .pairing import assign_ghosts

# Clusters of a primary channel and its ghosts, or groups of several.
Assignment = list[list[int]] | Groups


def filter_size(ghost: GhostConv2d) -> int:
    """Size in pixels of the filters that decide the assignment; 3 for shifts by one pixel."""
    cheap = ghost.cheap_operation
    return int(cheap.kernel_size[0]) if isinstance(cheap, nn.Conv2d) else 3


def errors_or_covariance(ghost: GhostConv2d, moments: ChannelMoments) -> torch.Tensor:
    """Matrix that decides the assignment of a Ghost.

    Args:
        ghost: The Ghost.
        moments: Of the output of its conv.

    Returns:
        (n, n) in float64, relative to the energy of all channels: the error of each channel as a
        filter of each other one; for ghosts that mix several primary channels the covariance. All
        channels count alike: on ResNet-20 and EfficientNet-Lite0 that was better than to weigh
        them by the norm behind, and as good as by gradients.
    """
    if ghost.group_size > 1:
        covariance = channel_covariance(moments)
        return covariance / covariance.diagonal().sum().clamp_min(1e-30)
    return relative_errors(moments)


def relative_errors(moments: ChannelMoments) -> torch.Tensor:
    """(n, n) :func:`pairwise_errors` relative to the energy of all channels."""
    shares = moments.energy.double()
    return pairwise_errors(moments).mul_(shares / shares.sum().clamp_min(1e-30))


def assign_channels(
    ghosts: Sequence[GhostConv2d], statistics: Sequence[torch.Tensor]
) -> list[Assignment]:
    """Choose primary channels and assign ghosts to them; of several convs so that all agree.

    Args:
        ghosts: Of one layout; where all primary channels are one group ratios may differ.
        statistics: :func:`errors_or_covariance` of each.

    Returns:
        One for each conv. All lead to the same permutation.
    """
    first, number = ghosts[0], len(statistics[0])
    if first.group_size > 1:
        most = max(ghosts, key=lambda ghost: ghost.primary)
        sizes = most.primary, most.num_ghosted, most.group_size, most.ghosts_per_group
        found = group_channels(torch.stack(list(statistics)), GhostLayout(*sizes))
        if most.group_size < most.primary:
            return [found] * len(ghosts)
        ranks = found.primaries[0] + found.ghosts[0]
        return [Groups([ranks[: g.primary]], [ranks[g.primary :]], []) for g in ghosts]
    errors = statistics[0] if len(ghosts) == 1 else torch.stack(list(statistics)).sum(0)
    size, primary = number // first.groups, first.primary // first.groups
    clusters = []
    for start in range(0, number, size):
        group = slice(start, start + size)
        for members in assign_ghosts(errors[group, group], primary, first.ghosts_per_group):
            clusters.append([start + index for index in members])
    return [clusters] * len(ghosts)


def initialize_ghost(
    conv: nn.Conv2d,
    ghost: GhostConv2d,
    moments: ChannelMoments,
    assignment: Assignment | None = None,
) -> float:
    """Give a Ghost the weights of a conv: copies of the primary kernels, fitted cheap kernels.

    Args:
        conv: The dense conv.
        ghost: Its Ghost with ``permuted=True`` and the same groups; changed in place.
        moments: Of the output of ``conv``.
        assignment: Of :func:`assign_channels`; None chooses the best for this conv.

    Returns:
        Squared error of the output relative to its energy; ghosts made by shifts count as lost,
        as they have nothing to fit.
    """
    if not ghost.ghosts_per_group:
        ghost.primary_conv.load_state_dict(conv.state_dict())
        return 0.0
    mixed = ghost.group_size > 1
    if assignment is None or not mixed:
        statistic = errors_or_covariance(ghost, moments)
    if assignment is None:
        (assignment,) = assign_channels([ghost], [statistic])
    if isinstance(assignment, Groups):
        return _write_mixed(conv, ghost, moments, assignment)
    primaries = [members[0] for members in assignment for _ in members[1:]]
    ghosts = [j for members in assignment for j in members[1:]]
    filters = pair_filters(moments, primaries, ghosts)
    _write_weights(conv, ghost, assignment, filters, moments.constant)
    if isinstance(ghost.cheap_operation, nn.Conv2d):
        return float(statistic[primaries, ghosts].sum())
    shares = moments.energy.double()
    return float((shares[ghosts] / shares.sum().clamp_min(1e-30)).sum())


def channel_covariance(moments: ChannelMoments) -> torch.Tensor:
    """(n, n) of the channels in float64; without images their products for white input."""
    centre = (moments.own.shape[1] - moments.constant) // 2
    covariance = moments.cross[:, :, centre].double()
    if moments.constant:
        mean = moments.cross[0, :, -1].double()
        covariance = covariance - mean[:, None] * mean
    return covariance


def rounding_error(moments: ChannelMoments) -> float:
    """Share of the largest eigenvalue of a covariance below which others are rounding."""
    return 1e-12 if moments.cross.dtype == torch.float64 else 1e-6


@torch.no_grad()
def _write_mixed(
    conv: nn.Conv2d, ghost: GhostConv2d, moments: ChannelMoments, groups: Groups
) -> float:
    """Write weights of ghosts that mix several primary channels, by kernels of one pixel."""
    cheap = cast(nn.Conv2d, ghost.cheap_operation)
    centre = cheap.kernel_size[0] // 2
    covariance = channel_covariance(moments)
    mean = moments.cross[0, :, -1].double() if moments.constant else None
    rounding = rounding_error(moments)
    firsts = [*chain.from_iterable(groups.primaries), *groups.others]
    ghost.primary_conv.weight.copy_(conv.weight[firsts])
    order = torch.zeros(conv.out_channels, dtype=torch.long)
    order[firsts] = torch.arange(len(firsts))
    weights = torch.zeros_like(cheap.weight)
    biases = torch.zeros(len(weights), dtype=torch.float64)
    offsets = conv.bias.double() if conv.bias is not None and mean is None else mean
    lost = 0.0
    for index, (own, ghosts) in enumerate(zip(groups.primaries, groups.ghosts, strict=True)):
        # Primary channels may depend on each other, where they are more than the inputs.
        inverse = torch.linalg.pinv(covariance[own][:, own], rtol=rounding, hermitian=True)
        found = inverse @ covariance[own][:, ghosts]  # (size, ghosts)
        place = index * ghost.ghosts_per_group + torch.arange(len(ghosts))
        order[ghosts] = ghost.primary + place
        weights[place, :, centre, centre] = found.T.to(weights)
        if offsets is not None:
            biases[place] = (offsets[ghosts] - found.T @ offsets[own]).to(biases)
        explained = (found * covariance[own][:, ghosts]).sum(0)
        lost += float((covariance.diagonal()[ghosts] - explained).clamp_min(0).sum())
    ghost.order = order
    cheap.weight.copy_(weights)
    if cheap.bias is not None:
        cheap.bias.copy_(biases)
    if conv.bias is not None and ghost.primary_conv.bias is not None:
        ghost.primary_conv.bias.copy_(conv.bias[firsts])
    return lost / float(covariance.diagonal().sum().clamp_min(1e-30))


@torch.no_grad()
def _write_weights(
    conv: nn.Conv2d,
    ghost: GhostConv2d,
    clusters: list[list[int]],
    filters: torch.Tensor,  # (pairs, terms) in the order of the clusters
    constant: bool,
) -> None:
    firsts, size = [members[0] for members in clusters], filter_size(ghost)
    ghost.primary_conv.weight.copy_(conv.weight[firsts])
    kernels = filters.new_zeros(ghost.num_ghosted * ghost.ghosts_per_group, 1, size, size)
    biases = torch.zeros(len(kernels), dtype=torch.float64)
    order = torch.zeros(conv.out_channels, dtype=torch.long)
    remaining = iter(filters)
    for index, (first, *others) in enumerate(clusters):
        order[first] = index
        for copy, j in enumerate(others):
            place = index * ghost.ghosts_per_group + copy
            order[j] = len(clusters) + place
            found = next(remaining)
            kernels[place, 0] = found[: size**2].view(size, size)
            if constant:
                biases[place] = found[-1]
            elif conv.bias is not None:
                biases[place] = conv.bias[j] - conv.bias[first] * found.sum()
    ghost.order = order
    if conv.bias is not None and ghost.primary_conv.bias is not None:
        ghost.primary_conv.bias.copy_(conv.bias[firsts])
    cheap = ghost.cheap_operation
    if not isinstance(cheap, nn.Conv2d):
        return
    cheap.weight.copy_(kernels)
    if cheap.bias is not None:
        cheap.bias.copy_(biases)
