"""First weights of a Ghost conv: copies of primary filters, and the best cheap ones for them."""

import torch
from torch import nn

from ...layers.ghost import GhostConv2d
from .channel_statistics import ChannelMoments, pair_filters, pairwise_errors
from .pairing import assign_ghosts


def cheap_side(ghost: GhostConv2d) -> int:
    """Of the filters that decide which map hangs on which, pixels; 3 for shifts by one pixel."""
    cheap = ghost.cheap_operation
    return cheap.kernel_size[0] if isinstance(cheap, nn.Conv2d) else 3


def inherit(conv: nn.Conv2d, ghost: GhostConv2d, stats: ChannelMoments) -> float:
    """Give ``ghost`` the weights of ``conv``: copies of the primary filters, fitted cheap ones.

    Args:
        conv: The dense conv.
        ghost: Its Ghost with ``permuted=True`` and the same groups.
        stats: Correlations of the maps that ``conv`` gives.

    Returns:
        Squared error of the maps relative to their energy; maps that shifts make count as lost,
        as nothing of these can be fitted. All maps count alike: on ResNet-20 and EfficientNet-Lite0
        that was better than to weigh them by the norm behind, and as good as by gradients.
    """
    if not ghost.ghosts_per_primary:
        ghost.primary_conv.load_state_dict(conv.state_dict())
        return 0.0
    shares = stats.energy.double()
    shares = shares / shares.sum().clamp_min(1e-30)
    lost = pairwise_errors(stats).mul_(shares)
    size = conv.out_channels // conv.groups
    primary, copies = ghost.primary_conv.out_channels // conv.groups, ghost.ghosts_per_primary
    rows = []
    for start in range(0, conv.out_channels, size):
        part = slice(start, start + size)
        chosen = assign_ghosts(lost[part, part], primary, copies)
        rows += [[start + index for index in row] for row in chosen]
    primaries = [row[0] for row in rows for _ in row[1:]]
    ghosts = [j for row in rows for j in row[1:]]
    _write(conv, ghost, rows, pair_filters(stats, primaries, ghosts), stats.constant)
    fitted = isinstance(ghost.cheap_operation, nn.Conv2d)
    return float((lost[primaries, ghosts] if fitted else shares[ghosts]).sum())


@torch.no_grad()
def _write(
    conv: nn.Conv2d,
    ghost: GhostConv2d,
    rows: list[list[int]],
    best: torch.Tensor,  # filters, of all pairs in the order of the rows
    constant: bool,
) -> None:
    firsts, side = [row[0] for row in rows], cheap_side(ghost)
    ghost.primary_conv.weight.copy_(conv.weight[firsts])
    kernels = best.new_zeros(ghost.num_ghosted * ghost.ghosts_per_primary, 1, side, side)
    biases = torch.zeros(len(kernels), dtype=torch.float64)
    order = torch.zeros(conv.out_channels, dtype=torch.long)
    filters = iter(best)
    for index, (first, *others) in enumerate(rows):
        order[first] = index
        for copy, j in enumerate(others):
            place = index * ghost.ghosts_per_primary + copy
            order[j] = len(rows) + place
            found = next(filters)
            kernels[place, 0] = found[: side**2].view(side, side)
            if constant:
                biases[place] = found[-1]
            elif conv.bias is not None:
                biases[place] = conv.bias[j] - conv.bias[first] * found.sum()
    ghost.order = order
    if conv.bias is not None:
        ghost.primary_conv.bias.copy_(conv.bias[firsts])
    if not isinstance(ghost.cheap_operation, nn.Conv2d):
        return
    ghost.cheap_operation.weight.copy_(kernels)
    if ghost.cheap_operation.bias is not None:
        ghost.cheap_operation.bias.copy_(biases)
