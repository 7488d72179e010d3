"""Second moments of a conv's output channels, and the best small filter from each to each other.

A Ghost conv is linear, so each ghost channel is a small filter of one primary channel, and the best
filter for a pair is a least-squares problem in the second moments of the conv's own output. These
come from images, or, without any, from the weights alone, as white input would give them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

MAX_SOLVED_ELEMENTS = 2**17  # that are solved for at a time, for the cache
RIDGE_SHARE = 1e-9  # of a channel's energy, keeps the small systems solvable
PRIOR_POSITIONS = 32  # positions as which the moments of white input count beside those of images
MAX_PRIOR_POSITIONS = 64 * 2**10  # positions of images above which they do not count
# Limits of one conv's statistics.
MAX_MULTIPLY_ADDS, MIN_POSITIONS, MAX_POSITIONS = 2 * 10**10, 2_048, 65_536
POOLED_POSITIONS = 16  # held-back positions at which a channel's own step counts as all others'


@dataclass(frozen=True)
class ChannelMoments:
    """Second moments of the output channels y of a conv, for filters of d x d pixels.

    If the conv has a bias and images were seen, a constant 1 is one more term of each filter.

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

    def without_neighbours(self) -> 'ChannelMoments':
        """The moments for filters of one pixel."""
        terms = self.own.shape[1]
        kept = [(terms - self.constant) // 2, *([terms - 1] if self.constant else [])]
        own = self.own[:, kept][:, :, kept]
        return ChannelMoments(own, self.cross[:, :, kept], self.energy, self.constant)


def moments_from_weights(conv: nn.Conv2d, size: int) -> ChannelMoments:
    """Compute the moments that white input would give: products of shifted kernels.

    Args:
        conv: A dense conv.
        size: Of the filters, pixels.
    """
    weight = conv.weight.detach()
    kernel = weight if weight.dtype == torch.float64 else weight.float()
    number, radius = len(kernel), size // 2
    cross = kernel.new_zeros(number, number, size, size)
    for down, right in product(range(-radius, radius + 1), repeat=2):
        for here, there in _overlap(conv, kernel, (down, right)):
            cross[:, :, radius + down, radius + right] = here.flatten(1) @ there.flatten(1).T
    # Moments of each channel with itself, by the difference of two shifts.
    wide = kernel.new_zeros(number, 4 * radius + 1, 4 * radius + 1)
    for down, right in product(range(-2 * radius, 2 * radius + 1), repeat=2):
        for here, there in _overlap(conv, kernel, (down, right)):
            wide[:, 2 * radius + down, 2 * radius + right] = (here * there).sum((1, 2, 3))
    shifts = torch.cartesian_prod(torch.arange(size), torch.arange(size)).view(-1, 2)
    differences = shifts[:, None] - shifts[None] + 2 * radius
    own = wide[:, differences[..., 0], differences[..., 1]]
    return ChannelMoments(own, cross.flatten(2), kernel.square().sum((1, 2, 3)))


def _overlap(
    conv: nn.Conv2d, kernel: torch.Tensor, shift: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Taps of shifted and of unshifted kernels that see the same pixels, if there are any."""
    here, there = [], []
    for move, stride, dilation, size in zip(
        shift, conv.stride, conv.dilation, kernel.shape[2:], strict=True
    ):
        taps, rest = divmod(move * stride, dilation)
        if rest or abs(taps) >= size:
            return
        here.append(slice(max(0, -taps), size - max(0, taps)))
        there.append(slice(max(0, taps), size + min(0, taps)))
    yield kernel[:, :, here[0], here[1]], kernel[:, :, there[0], there[1]]


class ChannelMomentsCollector:
    """Moments of a conv's output, added up batch by batch; no activations are kept.

    Args:
        conv: The conv.
        size: Of the filters, pixels.
        num_batches: Batches to come; each gives its share of the positions, spread evenly.
    """

    def __init__(self, conv: nn.Conv2d, size: int, num_batches: int = 1) -> None:
        self.conv, self.size = conv, size
        self.constant = conv.bias is not None
        channels, terms = conv.out_channels, size**2 + self.constant
        device = conv.weight.device
        self.dtype = torch.float64 if conv.weight.dtype == torch.float64 else torch.float32
        self.own = torch.zeros(channels, terms, terms, device=device, dtype=torch.float64)
        self.cross = torch.zeros(terms, channels, channels, device=device, dtype=self.dtype)
        self.sum = torch.zeros(channels, device=device, dtype=torch.float64)
        self.squares = torch.zeros_like(self.sum)
        self.positions = 0
        affordable = MAX_MULTIPLY_ADDS // (channels**2 * terms)
        self.share = min(MAX_POSITIONS, max(MIN_POSITIONS, affordable)) // num_batches + 1

    def add(self, maps: torch.Tensor) -> None:
        """Add the moments of (N, channels, H, W)."""
        maps = maps.detach().to(self.dtype)
        terms = list(shifted(maps, self.size, self.conv.padding_mode, self.share))
        if self.constant:
            terms.append(torch.ones_like(terms[0]))
        here = terms[self.size**2 // 2]  # (n, positions)
        for index, term in enumerate(terms):
            self.cross[index].addmm_(term, here.T)
            for other in range(index + 1):
                moment = (term * terms[other]).sum(1).double()
                self.own[:, index, other] += moment
                if other != index:
                    self.own[:, other, index] += moment
        self.sum += here.sum(1).double()
        self.squares += here.square().sum(1).double()
        self.positions += here.shape[1]

    def moments(self) -> ChannelMoments:
        """Means over all positions; the last call, as nothing is copied."""
        for total in (self.own, self.cross, self.sum, self.squares):
            total /= self.positions
        if self.constant:
            self.squares.sub_(self.sum.square()).clamp_(min=0)  # rounding of constant channels
        found = ChannelMoments(self.own, self.cross.permute(1, 2, 0), self.squares, self.constant)
        return blend_with_prior(found, self.conv, self.size, self.positions)


def blend_with_prior(
    found: ChannelMoments, conv: nn.Conv2d, size: int, positions: int
) -> ChannelMoments:
    """Blend moments of images with those of white input, the more the fewer positions were seen.

    Args:
        found: Means over positions of images.
        conv, size: As in :func:`moments_from_weights`.
        positions: Number of positions.
    """
    if positions > MAX_PRIOR_POSITIONS:
        return found
    weight = PRIOR_POSITIONS / (PRIOR_POSITIONS + positions)
    white = moments_from_weights(conv, size)
    total = found.energy.double()
    bias = conv.bias.detach().double() if found.constant and conv.bias is not None else None
    if bias is not None:  # about the bias, as one position shows no variance
        total = total + (found.own[:, size**2 // 2, -1] - bias).square()
    scale = total.sum() / white.energy.double().sum().clamp_min(1e-30)
    energy, own, cross = (v * scale.to(v) for v in (white.energy, white.own, white.cross))
    if bias is not None:
        terms = torch.cat((bias[:, None].expand(-1, size**2), bias.new_ones(len(bias), 1)), 1)
        own = F.pad(own, (0, 1, 0, 1)).double() + terms[:, :, None] * terms[:, None]
        cross = F.pad(cross, (0, 1)) + (terms[:, None] * bias[None, :, None]).to(cross)
    return ChannelMoments(
        torch.lerp(found.own, own.to(found.own), weight),
        torch.lerp(found.cross, cross.to(found.cross), weight),
        torch.lerp(found.energy, energy.to(found.energy), weight),
        found.constant,
    )


def shifted(
    maps: torch.Tensor, size: int, mode: str, share: int, rows: slice = slice(None)
) -> Iterator[torch.Tensor]:
    """Sample the inputs of each tap of a depthwise filter.

    Args:
        maps: (N, channels, H, W).
        size: Of the filter, pixels.
        mode: Of its padding.
        share: About so many positions are sampled, spread evenly.
        rows: Rows whose positions are sampled.

    Returns:
        (channels, positions) for each tap.
    """
    first, end, _ = rows.indices(maps.shape[2])
    seen = maps[:, :, rows]
    height, width = seen.shape[2:]
    if size > 1:
        maps = F.pad(maps, [size // 2] * 4, mode='constant' if mode == 'zeros' else mode)
    padded = maps[:, :, first : end + size - 1]
    columns = padded.shape[3]
    step = sampling_step(seen, share)
    positions = torch.arange(0, seen[:, 0].numel(), step, device=maps.device)
    image, place = positions // (height * width), positions % (height * width)
    corner = image * padded.shape[2] * columns + place // width * columns + place % width
    flat = padded.transpose(0, 1).flatten(1)
    for row in range(size):
        for column in range(size):
            yield flat.index_select(1, corner + row * columns + column)


def sampling_step(maps: torch.Tensor, share: int) -> int:
    """Step between sampled positions.

    Args:
        maps: (N, channels, H, W).
        share: About so many positions are sampled.
    """
    # A step that shares no factor with the width would be better still; odd will do.
    return max(1, maps[:, 0].numel() // share) | 1


def solve(own: torch.Tensor, cross: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
    """Solve least squares from moments, in float64.

    A small ridge makes singular systems solvable; two refinements remove its bias from others.

    Args:
        own: (..., t, t) moments of the terms with each other.
        cross: (..., t, k) moments of the terms with the targets.
        damping: Further ridge, as a share of the terms' mean energy, that stays.

    Returns:
        (..., t, k)
    """
    own, cross = own.double(), cross.double()
    diagonal = own.diagonal(dim1=-2, dim2=-1)
    if damping:
        own = own + damping * torch.diag_embed(diagonal.mean(-1, keepdim=True).expand_as(diagonal))
    ridge = torch.diag_embed(
        RIDGE_SHARE * diagonal.mean(-1, keepdim=True).expand_as(diagonal) + 1e-30
    )
    factor, _ = torch.linalg.cholesky_ex(own + ridge)
    inverse = torch.cholesky_inverse(factor)  # many right-hand sides: products are faster
    best = inverse @ cross
    for _ in range(2):
        best = best + inverse @ (cross - own @ best)
    return torch.nan_to_num(best, posinf=0, neginf=0)


def line_search(positions: int, slope: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    """Steps along some directions that minimise the held-back squared error.

    Args:
        positions: Number of positions that were held back.
        slope: (n,) of the error along each direction, negative.
        curvature: (n,) of the error.

    Returns:
        (n,) steps within 0..1, pooled over directions as far as few positions were held back.
    """
    pooled = POOLED_POSITIONS / positions
    slope, curvature = (v + pooled * v.mean() for v in (slope.double(), curvature.double()))
    return torch.nan_to_num(slope / curvature, posinf=0, neginf=0).clamp(0, 1)


def pairwise_errors(stats: ChannelMoments) -> torch.Tensor:
    """Relative errors of each channel as the best filter of each other one.

    Returns:
        (n, n) share of the second channel's energy, within 0..1, that the best filter of the
        first, which would be primary, leaves.
    """
    some = max(1, MAX_SOLVED_ELEMENTS // stats.cross[0].numel())  # primaries at a time
    explained = [
        (solve(own, cross.transpose(1, 2)).transpose(1, 2) * cross).sum(2)
        for own, cross in zip(
            *(torch.split(m, some) for m in (stats.own, stats.cross)), strict=True
        )
    ]
    errors = torch.cat(explained)
    if stats.constant:  # the squared mean is explained by the constant
        errors -= stats.cross[:, :, -1].double().square()
    return errors.div_(stats.energy.double().clamp_min(1e-30)).neg_().add_(1).clamp_(0, 1)


def pair_filters(stats: ChannelMoments, primaries: list[int], ghosts: list[int]) -> torch.Tensor:
    """Best filter of each pair of channels.

    Args:
        stats: Moments of n channels, with t terms.
        primaries, ghosts: Channels of each pair.

    Returns:
        (pairs, t)
    """
    return solve(stats.own[primaries], stats.cross[primaries, ghosts, :, None])[..., 0]
