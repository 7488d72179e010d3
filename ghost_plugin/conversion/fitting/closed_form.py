"""Least squares from second moments, for Ghosts whose cheap kernels have one pixel.

Such a Ghost is F x for the inputs x that one position of its kernels sees, with F = [P; G P]: P are
the primary kernels, and G mixes them. Moments of x and of the residual with x are all that a fit
needs, so all images count at the price of a few products of matrices. For a given G the best P has
a closed form, for a given P each group of G has one::

    (D_p + G' D_g G) dP (S + ridge I) = residual of [P; G P] times x', pulled back by [I; G]

with the moments S of the inputs and D = 1 for the channels that are used. The two alternate.

The strength of the ridge and the length of each step are those with the least error on images that
were held back.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ...layers.ghost import GhostConv2d
from .channel_statistics import line_search, solve

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the inputs' mean energy
ROUNDS, MIN_GAIN = 3, 1e-3  # of cheap and primary kernels, and the gain that asks for one more
MAX_FLOAT64 = 1536  # inputs of systems that are solved in float64
IMAGES_AT_A_TIME = 8
# Positions that a fit uses: as many as so many multiply-adds allow, within limits.
MAX_MULTIPLY_ADDS, MAX_POSITIONS, POSITIONS_PER_INPUT = 4 * 10**10, 2**18, 2


@dataclass(frozen=True)
class LayerMoments:
    """Means over positions; A inputs of one position in each group of the primary conv.

    Attributes:
        inputs: (groups, A, A) moments of the inputs.
        cross: (computed, A) moments of each channel's residual with the inputs of its group.
        energy: (computed,) mean squares of the residuals.
        positions: Number of positions.
    """

    inputs: torch.Tensor
    cross: torch.Tensor
    energy: torch.Tensor
    positions: int

    def joined(self, other: 'LayerMoments') -> 'LayerMoments':
        """Moments over the positions of both, each about its own means.

        Args:
            other: Moments about the same kernels.
        """
        positions = self.positions + other.positions
        share = other.positions / positions
        return LayerMoments(
            self.inputs.lerp(other.inputs, share),
            self.cross.lerp(other.cross, share),
            self.energy.lerp(other.energy, share),
            positions,
        )


@dataclass(frozen=True)
class Kernels:
    """Weights of a Ghost as matrices.

    Attributes:
        primary: (m, A).
        cheap: (groups of ghosts, ghosts_per_group, group_size); empty without ghosts.
    """

    primary: torch.Tensor
    cheap: torch.Tensor

    @property
    def num_ghosted(self) -> int:
        """Number of primary channels that have ghosts."""
        return self.cheap.shape[0] * self.cheap.shape[2]

    def blocks(self, rows: torch.Tensor) -> torch.Tensor:
        """(groups of ghosts, group_size, A) the rows of primary channels that have ghosts."""
        return rows[: self.num_ghosted].view(len(self.cheap), self.cheap.shape[2], -1)

    def effective(self) -> torch.Tensor:
        """(computed, A) kernels of all channels, as one conv without ghosts would have them."""
        if not len(self.cheap):
            return self.primary
        ghosts = self.cheap @ self.blocks(self.primary)
        return torch.cat((self.primary, ghosts.flatten(0, 1)))


def has_closed_form(ghost: GhostConv2d) -> bool:
    """Say if moments are enough to fit a Ghost.

    Args:
        ghost: Its cheap operation is a conv, if it has ghosts.
    """
    conv = ghost.primary_conv
    if ghost.ghosts_per_group:
        cheap: Any = ghost.cheap_operation
        if cheap.kernel_size != (1, 1):
            return False
    pointwise = conv.kernel_size == (1, 1) and conv.padding in (0, (0, 0))
    depthwise = conv.groups == conv.in_channels
    # Subclasses pad in their own ways.
    plain = type(conv) is nn.Conv2d and not isinstance(conv.padding, str)
    return pointwise or depthwise or plain


def collect_layer_moments(
    ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor, rows: slice, free: bool
) -> LayerMoments:
    """Moments of a Ghost's inputs and residuals.

    Args:
        ghost: It gives the outputs that the residuals are about.
        x: (N, in_channels, H, W) inputs.
        y: (N, computed, H', W') targets of the computed channels.
        rows: Rows of the targets that count.
        free: Whether means do not count.
    """
    conv = ghost.primary_conv
    size = conv.weight[0].numel()
    affordable = max(MAX_MULTIPLY_ADDS // (size**2 * conv.groups), POSITIONS_PER_INPUT * size)
    seen = y[:, 0, rows].numel()
    # A step that shares no factor with the width would be better still; odd will do.
    step = max(1, -(-seen // min(affordable, MAX_POSITIONS)))
    step += (step > 1) * (step % 2 == 0)
    groups = _groups_of_channels(ghost)
    place = groups.argsort(stable=True)
    inputs = x.new_zeros(conv.groups, size, size)
    cross = x.new_zeros(len(groups), size).view(conv.groups, -1, size)
    energy = torch.zeros(len(groups), dtype=torch.float64, device=x.device)
    sums, residuals = x.new_zeros(conv.groups, size), x.new_zeros(len(groups))
    centre, positions = None, 0
    for start in range(0, len(x), IMAGES_AT_A_TIME):
        few = slice(start, start + IMAGES_AT_A_TIME)
        gap = (y[few] - ghost_channels(ghost, x[few]))[:, :, rows]
        first = -start * gap[0, 0].numel() % step  # so that steps go on over images
        gap = gap.transpose(0, 1).flatten(1)[:, first::step]
        maps = _inputs_by_position(conv, x[few])[..., rows, :]  # (groups, A, N, rows, W')
        maps = maps.flatten(2)[..., first::step]
        if not gap.shape[1]:
            continue
        if centre is None:  # about a point near the mean, which saves digits
            centre = maps.mean(2, keepdim=True) * free
        maps = maps - centre
        inputs.baddbmm_(maps, maps.transpose(1, 2))
        cross.baddbmm_(gap[place].view(conv.groups, -1, gap.shape[1]), maps.transpose(1, 2))
        energy += gap.double().square().sum(1)
        sums += maps.sum(2)
        residuals += gap.sum(1)
        positions += gap.shape[1]
    inputs, sums = inputs.double() / positions, sums.double() / positions
    residuals = residuals.double() / positions
    energy /= positions
    moments = torch.empty_like(cross.view(-1, size), dtype=torch.float64)
    moments[place] = cross.view(-1, size).double() / positions
    if free:
        inputs -= sums[:, :, None] * sums[:, None]
        moments -= residuals[:, None] * sums[groups]
        energy = (energy - residuals.square()).clamp_min(0)
    return LayerMoments(inputs, moments, energy, positions)


def ghost_channels(ghost: GhostConv2d, x: torch.Tensor) -> torch.Tensor:
    """All computed channels, before the permutation.

    Args:
        ghost: The Ghost.
        x: (N, in_channels, H, W) inputs.
    """
    primary: torch.Tensor = ghost.primary_conv(x)
    return torch.cat((primary, ghost.ghosts(primary)), 1) if ghost.ghosts_per_group else primary


def _groups_of_channels(ghost: GhostConv2d) -> torch.Tensor:
    """(computed,) group of the primary conv that each computed channel comes from."""
    conv = ghost.primary_conv
    primary = torch.arange(ghost.primary, device=conv.weight.device)
    if ghost.ghosts_per_group:
        sources = primary[: ghost.num_ghosted : ghost.group_size]
        primary = torch.cat((primary, sources.repeat_interleave(ghost.ghosts_per_group)))
    return primary // (ghost.primary // conv.groups)


def _inputs_by_position(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """(groups, A, N, H', W') inputs that the kernels see at each position."""
    if conv.kernel_size == (1, 1):
        x = x[:, :, :: conv.stride[0], :: conv.stride[1]]
        return x.transpose(0, 1).unflatten(0, (conv.groups, -1))
    if conv.groups == conv.in_channels:
        return torch.stack(list(_taps(conv, x)), dim=1)
    height, width = (int(pad) for pad in conv.padding)
    mode = 'constant' if conv.padding_mode == 'zeros' else conv.padding_mode
    x = F.pad(x, (width, width, height, height), mode=mode)
    size = [
        (length - dilation * (kernel - 1) - 1) // stride + 1
        for length, dilation, kernel, stride in zip(
            x.shape[2:], conv.dilation, conv.kernel_size, conv.stride, strict=True
        )
    ]
    maps = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)
    return maps.transpose(0, 1).unflatten(0, (conv.groups, -1)).unflatten(3, size)


def _taps(conv: nn.Conv2d, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """(C, N, H', W') inputs of each tap of a depthwise conv, which pads as it does."""
    for tap in range(conv.weight[0].numel()):
        kernel = conv.weight.new_zeros(conv.in_channels, *conv.weight.shape[1:])
        kernel.view(conv.in_channels, -1)[:, tap] = 1
        parameters = {'weight': kernel}
        if conv.bias is not None:
            parameters['bias'] = kernel.new_zeros(conv.in_channels)
        maps: torch.Tensor = functional_call(conv, parameters, x)
        yield maps.transpose(0, 1)


def read_kernels(ghost: GhostConv2d) -> Kernels:
    """Weights of a Ghost, in float64."""
    primary = ghost.primary_conv.weight.detach().double().flatten(1)
    if not ghost.ghosts_per_group:
        return Kernels(primary, primary.new_zeros(0, 0, 1))
    cheap: Any = ghost.cheap_operation
    weight = cheap.weight.detach().double().view(-1, ghost.ghosts_per_group, ghost.group_size)
    return Kernels(primary, weight)


@torch.no_grad()
def write_kernels(ghost: GhostConv2d, kernels: Kernels) -> None:
    """Give a Ghost other weights.

    Args:
        ghost: Changed in place.
        kernels: As :func:`read_kernels` gives them.
    """
    conv = ghost.primary_conv
    conv.weight.copy_(kernels.primary.view_as(conv.weight))
    if ghost.ghosts_per_group:
        cheap: Any = ghost.cheap_operation
        cheap.weight.copy_(kernels.cheap.view_as(cheap.weight))


@dataclass(frozen=True)
class ClosedFormProblem:
    """Values that the steps of one fit share.

    Attributes:
        origin: (computed, A) kernels of all channels that the residuals of moments are about.
        used: (computed,) 1 for channels that have a target, 0 for the others.
        seen, held: Moments of the images that are fitted to, and of those that judge.
    """

    origin: torch.Tensor
    used: torch.Tensor
    seen: LayerMoments
    held: LayerMoments


def fit_closed_form(
    start: Kernels, used: torch.Tensor, seen: LayerMoments, held: LayerMoments
) -> tuple[Kernels, float]:
    """Fit kernels to moments.

    Args:
        start: Kernels that the residuals of the moments are about.
        used: (computed,) 1 for channels that have a target, 0 for the others.
        seen, held: Moments of the images that are fitted to, and of those that judge.

    Returns:
        Kernels that are fitted to all images in the end, and the sum of the used channels' squared
        errors on the held images before that.
    """
    problem = ClosedFormProblem(start.effective(), used, seen, held)
    found, least = start, _error(problem, start)
    ridges: tuple[float, ...] = RIDGES
    for _ in range(ROUNDS if len(start.cheap) else 1):
        before = least
        if len(start.cheap):
            step = _cheap_step(problem, found)
            lengths = _cheap_lengths(problem, found, step)
            trial = replace(found, cheap=found.cheap + lengths * step)
            if (error := _error(problem, trial)) < least:
                found, least = trial, error
        attempts = _try_ridges(problem, found, ridges)
        best = min(attempts, key=lambda attempt: attempt.error)
        ridges = (best.ridge,)
        if best.error < least:
            found, least = best.kernels, best.error
        if least > before * (1 - MIN_GAIN):
            break
    return _fit_all(problem, start, found, ridges[0]), least


def _fit_all(problem: ClosedFormProblem, start: Kernels, found: Kernels, ridge: float) -> Kernels:
    """Fit primary kernels once more, to what was held back, too, now that ridge and lengths stand.

    Where images are few, each fifth of them counts: EfficientNet-Lite0 at 80 % of its multiply-adds
    had a divergence of 0.114 from 280 of 350 images, and of 0.105 from all.
    """
    if found.primary is start.primary:
        return found
    base = replace(found, primary=start.primary)
    lengths = _lengths(problem, base, _primary_step(problem, base, ridge))
    everything = replace(problem, seen=problem.seen.joined(problem.held))
    step = _primary_step(everything, base, ridge)
    return replace(base, primary=base.primary + lengths * step)


def _channel_residuals(
    problem: ClosedFormProblem, kernels: Kernels, moments: LayerMoments
) -> torch.Tensor:
    """(computed, A) moments of targets less outputs with the inputs; 0 for unused channels."""
    delta = kernels.effective() - problem.origin
    left = moments.cross - _times_inputs(kernels, delta, moments)
    return left * problem.used[:, None]


def _times_inputs(kernels: Kernels, rows: torch.Tensor, moments: LayerMoments) -> torch.Tensor:
    """(computed or m, A) kernels times the moments of the inputs of their group."""
    groups = len(moments.inputs)
    if groups == 1:
        return rows @ moments.inputs[0]
    primary = rows[: len(kernels.primary)].unflatten(0, (groups, -1))
    ghosts = rows[len(kernels.primary) :].unflatten(0, (groups, -1))
    return torch.cat([(part @ moments.inputs).flatten(0, 1) for part in (primary, ghosts)])


def _error(problem: ClosedFormProblem, kernels: Kernels) -> float:
    """Sum of the used channels' squared errors on what was held back."""
    held = problem.held
    delta = kernels.effective() - problem.origin
    change = _times_inputs(kernels, delta, held)
    errors = held.energy + (delta * (change - 2 * held.cross)).sum(1)
    return float((errors.clamp_min(0) * problem.used).sum())


def _cheap_step(problem: ClosedFormProblem, kernels: Kernels) -> torch.Tensor:
    """(groups of ghosts, ghosts_per_group, group_size) best change of the cheap kernels."""
    seen = problem.seen
    blocks = kernels.blocks(kernels.primary)
    own = kernels.blocks(_times_inputs(kernels, kernels.primary, seen)) @ blocks.mT
    left = _channel_residuals(problem, kernels, seen)[len(kernels.primary) :]
    cross = blocks @ left.view(len(blocks), -1, left.shape[1]).mT
    return solve(own, cross, blocks.shape[1] / seen.positions).mT


def _cheap_lengths(
    problem: ClosedFormProblem, kernels: Kernels, step: torch.Tensor
) -> torch.Tensor:
    """(groups of ghosts, ghosts_per_group, 1) shares of the steps that are best on held images."""
    change = (step @ kernels.blocks(kernels.primary)).flatten(0, 1)
    padded = torch.cat((torch.zeros_like(kernels.primary), change))
    left = _channel_residuals(problem, kernels, problem.held)[len(kernels.primary) :]
    curved = _times_inputs(kernels, padded, problem.held)[len(kernels.primary) :]
    slope, curvature = (change * left).sum(1), (change * curved).sum(1)
    return line_search(problem.held.positions, slope, curvature).view(*step.shape[:2], 1)


@dataclass(frozen=True)
class _Attempt:
    ridge: float
    error: float
    kernels: Kernels


def _try_ridges(
    problem: ClosedFormProblem, kernels: Kernels, ridges: tuple[float, ...]
) -> list[_Attempt]:
    """Primary kernels with some ridges, from the middle on in each direction while errors fall."""
    middle = len(ridges) // 2
    attempts = [_attempt(problem, kernels, ridges[middle])]
    for others in (ridges[middle - 1 :: -1] if middle else (), ridges[middle + 1 :]):
        least = attempts[0].error
        for ridge in others:
            attempts.append(_attempt(problem, kernels, ridge))
            if attempts[-1].error >= least:
                break
            least = attempts[-1].error
    return attempts


def _attempt(problem: ClosedFormProblem, kernels: Kernels, ridge: float) -> _Attempt:
    step = _primary_step(problem, kernels, ridge)
    lengths = _lengths(problem, kernels, step)
    trial = replace(kernels, primary=kernels.primary + lengths * step)
    return _Attempt(ridge, _error(problem, trial), trial)


def _lengths(problem: ClosedFormProblem, kernels: Kernels, step: torch.Tensor) -> torch.Tensor:
    """(m, 1) shares of the steps of the primary kernels that are best on held images."""
    slope = (step * _pulled_back(problem, kernels, problem.held)).sum(1)
    curved = _times_inputs(kernels, replace(kernels, primary=step).effective(), problem.held)
    curvature = (step * _pull_back(kernels, curved * problem.used[:, None])).sum(1)
    return line_search(problem.held.positions, slope, curvature)[:, None]


def _pulled_back(
    problem: ClosedFormProblem, kernels: Kernels, moments: LayerMoments
) -> torch.Tensor:
    """(m, A) negative gradient, halved, of the error by the primary kernels."""
    return _pull_back(kernels, _channel_residuals(problem, kernels, moments))


def _pull_back(kernels: Kernels, rows: torch.Tensor) -> torch.Tensor:
    """(m, A) rows of all channels added up by the primary channels that they come from."""
    own, ghosts = rows.split([len(kernels.primary), len(rows) - len(kernels.primary)])
    if not len(kernels.cheap):
        return own
    back = kernels.cheap.mT @ ghosts.view(len(kernels.cheap), -1, rows.shape[1])
    return torch.cat((own[: kernels.num_ghosted] + back.flatten(0, 1), own[kernels.num_ghosted :]))


def _primary_step(problem: ClosedFormProblem, kernels: Kernels, ridge: float) -> torch.Tensor:
    """(m, A) best change of the primary kernels."""
    moments = problem.seen
    gradient = _pulled_back(problem, kernels, moments)
    number, ghosted = len(kernels.primary), kernels.num_ghosted
    weight = problem.used.clamp_min(1e-6)
    scaled = gradient / weight[:number, None]
    if ghosted:
        counts = weight[number:].view(len(kernels.cheap), -1, 1)
        own = torch.diag_embed(weight[:ghosted].view(len(kernels.cheap), -1))
        system = own + kernels.cheap.mT @ (counts * kernels.cheap)
        front = torch.linalg.solve(system, kernels.blocks(gradient))
        scaled = torch.cat((front.flatten(0, 1), scaled[ghosted:]))
    size = scaled.shape[1]
    # Large systems in float32: the ridge keeps them well-conditioned enough.
    inputs = moments.inputs if size <= MAX_FLOAT64 else moments.inputs.float()
    mean = inputs.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    damped = inputs + ridge * torch.diag_embed(mean[:, None].expand(-1, size))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed.any():
        return torch.zeros_like(gradient)
    right = scaled.view(len(inputs), -1, size).to(factor)
    return torch.cholesky_solve(right.mT, factor).mT.flatten(0, 1).to(gradient)
