"""Second moments of a conv's output maps, and the best small filter of each map for each other.

A Ghost conv is linear, so each ghost map is a small filter of one primary map, and the best filter
for a pair is a least-squares problem in the correlations of the conv's own output maps. These come
from pictures, or, without any, from the kernels alone, as white input would give them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from ...layers.common import same_padding

SOLVED = 2**17  # values that are solved for at a time
RIDGE = 1e-9  # of a map's energy, keeps the small systems solvable
PRIOR_POSITIONS = 32  # positions as which the moments of white input count beside those of images
MAX_PRIOR = 64 * 2**10  # positions from which on they do not count
# What one conv's statistics may cost: multiply-adds, and how many pixels at the least and most.
WORK, LEAST, MOST = 2 * 10**10, 2_048, 65_536


@dataclass
class ChannelMoments:
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


def moments_from_weights(conv: nn.Conv2d, side: int) -> ChannelMoments:
    """What white input would give: correlations of the kernels, shifted by output pixels."""
    weight = conv.weight.detach()
    kernel = weight if weight.dtype == torch.float64 else weight.float()
    number, reach = len(kernel), side // 2
    cross = kernel.new_zeros(number, number, side, side)
    for down, right in product(range(-reach, reach + 1), repeat=2):
        for here, there in _meeting(conv, kernel, (down, right)):
            cross[:, :, reach + down, reach + right] = here.flatten(1) @ there.flatten(1).T
    wide = kernel.new_zeros(number, 4 * reach + 1, 4 * reach + 1)  # at differences of two shifts
    for down, right in product(range(-2 * reach, 2 * reach + 1), repeat=2):
        for here, there in _meeting(conv, kernel, (down, right)):
            wide[:, 2 * reach + down, 2 * reach + right] = (here * there).sum((1, 2, 3))
    shifts = torch.cartesian_prod(torch.arange(side), torch.arange(side)).view(-1, 2)
    apart = shifts[:, None] - shifts[None] + 2 * reach
    own = wide[:, apart[..., 0], apart[..., 1]]
    return ChannelMoments(own, cross.flatten(2), kernel.square().sum((1, 2, 3)))


def _meeting(
    conv: nn.Conv2d, kernel: torch.Tensor, shift: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The taps of moved kernels and of those that stay which see the same pixels, if any do."""
    here, there = [], []
    for move, step, apart, size in zip(
        shift, conv.stride, conv.dilation, kernel.shape[2:], strict=True
    ):
        taps, between = divmod(move * step, apart)
        if between or abs(taps) >= size:
            return
        here.append(slice(max(0, -taps), size - max(0, taps)))
        there.append(slice(max(0, taps), size + min(0, taps)))
    yield kernel[:, :, here[0], here[1]], kernel[:, :, there[0], there[1]]


def pad(maps: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """``maps`` with the border that a depthwise filter of ``side`` pixels sees."""
    rows, columns = same_padding(side)
    mode = 'constant' if mode == 'zeros' else mode
    return F.pad(maps, (columns, columns, rows, rows), mode=mode) if rows else maps


class ChannelMomentsCollector:
    """Correlations of a conv's output maps, added up batch by batch; no map is kept.

    Args:
        conv: The conv whose maps come.
        side: Of the filters, pixels.
        batches: How many will come; each gives its share of the pixels, spread evenly.
    """

    def __init__(self, conv: nn.Conv2d, side: int, batches: int = 1) -> None:
        self.conv = conv
        self.side, self.mode = side, conv.padding_mode
        self.constant = conv.bias is not None
        channels, terms = conv.out_channels, side**2 + self.constant
        device = conv.weight.device
        self.dtype = torch.float64 if conv.weight.dtype == torch.float64 else torch.float32
        self.own = torch.zeros(channels, terms, terms, device=device, dtype=torch.float64)
        self.cross = torch.zeros(terms, channels, channels, device=device, dtype=self.dtype)
        self.sum = torch.zeros(channels, device=device, dtype=torch.float64)
        self.squares = torch.zeros_like(self.sum)
        self.pixels = 0
        pixels = min(MOST, max(LEAST, WORK // (channels**2 * terms)))
        self.share = pixels // batches + 1

    def add(self, maps: torch.Tensor) -> None:
        """Take in (N, channels, H, W)."""
        maps = maps.detach().to(self.dtype)
        terms = list(shifted(maps, self.side, self.mode, self.share))
        if self.constant:
            terms.append(torch.ones_like(terms[0]))
        here = terms[self.side**2 // 2]  # (n, pixels)
        for index, term in enumerate(terms):
            self.cross[index].addmm_(term, here.T)
            for other in range(index + 1):
                moment = (term * terms[other]).sum(1).double()
                self.own[:, index, other] += moment
                if other != index:
                    self.own[:, other, index] += moment
        self.sum += here.sum(1).double()
        self.squares += here.square().sum(1).double()
        self.pixels += here.shape[1]

    def correlations(self) -> ChannelMoments:
        """Means over all pixels; it ends with this, as nothing is copied."""
        for total in (self.own, self.cross, self.sum, self.squares):
            total /= self.pixels
        if self.constant:
            self.squares.sub_(self.sum.square()).clamp_(min=0)  # rounding of constant maps
        found = ChannelMoments(self.own, self.cross.permute(1, 2, 0), self.squares, self.constant)
        return blended(found, self.conv, self.side, self.pixels)


def blended(found: ChannelMoments, conv: nn.Conv2d, side: int, positions: int) -> ChannelMoments:
    """Moments of images, with those of white input beside them as far as positions are few.

    Args:
        found: Means over positions of images.
        conv, side: As in :func:`moments_from_weights`.
        positions: How many there were.
    """
    if positions > MAX_PRIOR:
        return found
    weight = PRIOR_POSITIONS / (PRIOR_POSITIONS + positions)
    white = moments_from_weights(conv, side)
    total = found.energy.double()
    if found.constant:  # about the bias, as one position shows no variance
        total = total + (found.own[:, side**2 // 2, -1] - conv.bias.detach().double()).square()
    scale = total.sum() / white.energy.double().sum().clamp_min(1e-30)
    energy, own, cross = (v * scale.to(v) for v in (white.energy, white.own, white.cross))
    if found.constant:
        mean = conv.bias.detach().double()
        ones = mean.new_ones(len(mean), 1)
        terms = torch.cat((mean[:, None].expand(-1, side**2), ones), 1)
        own = F.pad(own, (0, 1, 0, 1)).double() + terms[:, :, None] * terms[:, None]
        cross = F.pad(cross, (0, 1)) + (terms[:, None] * mean[None, :, None]).to(cross)
    return ChannelMoments(
        torch.lerp(found.own, own.to(found.own), weight),
        torch.lerp(found.cross, cross.to(found.cross), weight),
        torch.lerp(found.energy, energy.to(found.energy), weight),
        found.constant,
    )


def shifted(
    maps: torch.Tensor, side: int, mode: str, share: int, rows: slice = slice(None)
) -> Iterator[torch.Tensor]:
    """``maps`` as each tap of a depthwise filter sees them: (channels, pixels) each.

    Args:
        maps: (N, channels, H, W).
        side: Of the filter, pixels.
        mode: Of its padding.
        share: About so many of the pixels are looked at, spread evenly.
        rows: Rows whose pixels are looked at.
    """
    first, end, _ = rows.indices(maps.shape[2])
    seen = maps[:, :, rows]
    height, width = seen.shape[2:]
    padded = pad(maps, side, mode)[:, :, first : end + side - 1]
    columns = padded.shape[3]
    pixels = torch.arange(0, seen[:, 0].numel(), every(seen, share), device=maps.device)
    image, place = pixels // (height * width), pixels % (height * width)
    corner = image * padded.shape[2] * columns + place // width * columns + place % width
    flat = padded.transpose(0, 1).flatten(1)
    for row in range(side):
        for column in range(side):
            yield flat.index_select(1, corner + row * columns + column)


def every(maps: torch.Tensor, share: int) -> int:
    """Of how many pixels of (N, channels, H, W) one is looked at, if about ``share`` shall be."""
    # A step that shares no factor with the width would be better still; odd will do.
    return max(1, maps[:, 0].numel() // share) | 1


def solve(own: torch.Tensor, cross: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
    """Least squares from moments, in float64.

    A small ridge makes singular systems solvable; two refinements take its bias out again where
    the system is not.

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
    ridge = torch.diag_embed(RIDGE * diagonal.mean(-1, keepdim=True).expand_as(diagonal) + 1e-30)
    factor, _ = torch.linalg.cholesky_ex(own + ridge)
    inverse = torch.cholesky_inverse(factor)  # many right sides: products are faster than solving
    best = inverse @ cross
    for _ in range(2):
        best = best + inverse @ (cross - own @ best)
    return torch.nan_to_num(best, posinf=0, neginf=0)


def pairwise_errors(stats: ChannelMoments) -> torch.Tensor:
    """(n, n) share of a map's energy, within 0..1, that the best filter of another leaves.

    The other, which would be primary, comes first.
    """
    some = max(1, SOLVED // stats.cross[0].numel())  # primaries at a time, for the cache
    explained = [
        (solve(own, cross.transpose(1, 2)).transpose(1, 2) * cross).sum(2)
        for own, cross in zip(stats.own.split(some), stats.cross.split(some), strict=True)
    ]
    errors = torch.cat(explained)
    if stats.constant:  # the squared mean is explained by the constant
        errors -= stats.cross[:, :, -1].double().square()
    return errors.div_(stats.energy.double().clamp_min(1e-30)).neg_().add_(1).clamp_(0, 1)


def pair_filters(stats: ChannelMoments, primaries: list[int], ghosts: list[int]) -> torch.Tensor:
    """(pairs, t) best filters, of each primary map for the ghost at the same place."""
    return solve(stats.own[primaries], stats.cross[primaries, ghosts, :, None])[..., 0]
