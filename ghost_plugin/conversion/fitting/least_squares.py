"""Regularised least squares of one layer, on the inputs that it really gets.

Where cheap kernels have one pixel, second moments are enough (closed_form.py). Otherwise, with the
cheap kernels fixed the Ghost is linear in its primary kernels, with these fixed it is linear in the
cheap ones. The first problem is solved by conjugate gradients, with the second moments of the
inputs as preconditioner (each primary kernel serves several outputs at several positions, so no
closed form is cheap); the second one in closed form. A dense layer is a Ghost without ghosts.

Few images determine little. Each solve has a ridge towards the weights that the Ghost has already;
its strength is the number of unknowns over the number of positions, or the one that is best on
images held back. Some images, or some rows of a single one, are held back from all solves. Each
solution is only a direction: a line search along it minimises the error on what was held back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ...layers.ghost import GhostConv2d
from .channel_statistics import (
    POOLED_POSITIONS,
    line_search,
    sampling_step,
    shifted,
    solve,
)
from .closed_form import (
    collect_layer_moments,
    fit_closed_form,
    ghost_channels,
    has_closed_form,
    read_kernels,
    write_kernels,
)

CG_STEPS = 6  # of conjugate gradients; on ResNet-20 a second round of both problems gained nothing
EXACT_ERROR = 1e-12  # relative error below which there is nothing to fit
HOLDOUT_DIVISOR = 5  # one image in so many is held back
# Up to so many images, each is held back in one of so many folds, and the fits are averaged.
MAX_FOLD_IMAGES, NUM_FOLDS = 16, 4
MIN_ROWS = 4  # rows of a single image's feature map from which a part of them is held back
MIN_RIDGE = 1e-3  # of the inputs' mean energy, on a step of the primary kernels
RIDGE_PRIMARY = 0.1  # of the same, times unknowns over positions
# Limits of what a fit uses. Activations stay below the 32 MB from which on glibc asks the system
# for each tensor and gives it back.
MIN_IMAGES, MAX_ELEMENTS = 256, 15 * 2**19
VARIANCE_STRENGTH, MAX_SCALE = 0.7, 1.5  # part of the way to the targets' variance, and at most
POSITIONS_PER_ENTRY = 128  # of a primary kernel
CHEAP_POSITIONS = 16_384  # for the cheap kernels
PRECONDITIONER_POSITIONS = 2048  # besides one per entry of a primary kernel
CHEAP_ELEMENTS = 15 * 2**18  # float64 inputs of the cheap kernels that are held at a time
MAX_MOMENT_ELEMENTS = 2**25  # of inputs or targets, where moments are enough

Solve = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FitProblem:
    """Inputs and targets of a Ghost conv.

    Computed channels are the primary ones, then the ghosts, before the permutation to outputs.

    Attributes:
        x: (N, in_channels, H, W) inputs.
        y: (N, computed, H', W') targets of the computed channels.
        used: (computed,) 1 for channels with a target, 0 for those that are not used.
        free: Whether means are matched by what follows (a bias, or a norm's running mean).
        start, stop: First row of the targets that counts, and the one behind the last.
    """

    x: torch.Tensor
    y: torch.Tensor
    used: torch.Tensor
    free: bool
    start: int = 0
    stop: int | None = None

    @property
    def rows(self) -> slice:
        """Rows of the targets that count."""
        return slice(self.start, self.stop)

    def folds(self) -> list[tuple['FitProblem', 'FitProblem']]:
        """Split into pairs of what to fit to and what to hold back for the line search.

        Returns:
            One pair, or for few images several, each of which holds back others. Of a single
            image some rows are held back; no pair if it has too few.
        """
        number, height = len(self.x), self.y.shape[2]
        if number == 1 and height < MIN_ROWS:
            return []
        if number == 1:
            split = height - height // MIN_ROWS
            return [(replace(self, stop=split), replace(self, start=split))]
        if number > MAX_FOLD_IMAGES:
            split = number - num_held(number, HOLDOUT_DIVISOR)
            return [(self._select(slice(split)), self._select(slice(split, None)))]
        held = list(torch.arange(number).tensor_split(min(number, NUM_FOLDS)))
        every = torch.ones(number, dtype=torch.bool, device=self.x.device)
        masks = [every.index_fill(0, part.to(every.device), False) for part in held]
        return [(self._select(mask), self._select(~mask)) for mask in masks]

    def _select(self, images: torch.Tensor | slice) -> 'FitProblem':
        return replace(self, x=self.x[images], y=self.y[images])

    @property
    def positions(self) -> int:
        """Number of positions that count, over all images."""
        return self.y[:, 0, self.rows].numel()

    def centred(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps less their means, if these are free."""
        return maps - maps.mean((0, 2, 3), keepdim=True) if self.free else maps


def num_held(number: int, divisor: int) -> int:
    """Number of images to hold back: one in ``divisor``, but one of two and none of one.

    Args:
        number: Of images.
        divisor: One in so many.
    """
    return max(1, number // divisor) if number > 1 else 0


@dataclass(frozen=True)
class FitResult:
    """Result of a fit, next to the weights.

    Attributes:
        shift: (out_channels,) to be added to the channels if the Ghost has no bias of its own.
        error: Squared error of the channels relative to their variance.
    """

    shift: torch.Tensor
    error: float


def num_samples_for(ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor) -> int:
    """Number of images that a fit uses.

    Args:
        ghost: To be fitted.
        x, y: (N, C, H, W) inputs and targets of one or more such images.
    """
    if has_closed_form(ghost):
        return max(1, MAX_MOMENT_ELEMENTS // max(x[0].numel(), y[0].numel()))
    wanted: int = POSITIONS_PER_ENTRY * ghost.primary_conv.weight[0].numel() // y[0, 0].numel()
    most = MAX_ELEMENTS // max(x[0].numel(), y[0].numel())
    return max(1, min(most, max(MIN_IMAGES, wanted)))


@torch.no_grad()
def fit_ghost(
    ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor, free: bool, match_variances: bool = False
) -> FitResult:
    """Fit a Ghost in place; its permutation stays, and the fit never adds error.

    Args:
        ghost: With ``permuted=True`` and a depthwise cheap operation.
        x: (N, in_channels, H, W) inputs.
        y: (N, out_channels, H', W') targets.
        free: Whether a norm behind takes the shift of the means; a bias always does.
        match_variances: Scale the channels afterwards, which adds a little error.

    Returns:
        The error before channels were scaled, and the shift.
    """
    problem = _by_computed_channel(ghost, x, y, free or ghost.primary_conv.bias is not None)
    energy = _energy(problem)
    shift = torch.zeros_like(problem.used)
    start = _parameters(ghost)
    fits, parameters = [], []
    fit = _fit_to_moments if has_closed_form(ghost) else _fit
    for seen, held in problem.folds():
        fits.append(fit(ghost, seen, held, energy))
        parameters.append(_parameters(ghost))
        _set_parameters(ghost, start)
    if not fits:
        return FitResult(shift[ghost.order], _measure(ghost, problem, shift, energy).error)
    _set_parameters(ghost, {name: _mean([own[name] for own in parameters]) for name in start})
    if match_variances:
        _match_variances(ghost, problem)
    shift = _match_means(ghost, problem, _mean([fit.shift for fit in fits]))
    return FitResult(shift[ghost.order], sum(fit.error for fit in fits) / len(fits))


def _mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)


def _parameters(ghost: GhostConv2d) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in ghost.named_parameters()}


def _set_parameters(ghost: GhostConv2d, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in ghost.named_parameters():
        parameter.copy_(values[name])


def _fit_to_moments(
    ghost: GhostConv2d, seen: FitProblem, held: FitProblem, energy: torch.Tensor
) -> FitResult:
    """Fit in place by second moments, if that lowers the error on what was held back."""
    parts = [
        collect_layer_moments(ghost, part.x, part.y, part.rows, part.free) for part in (seen, held)
    ]
    start = read_kernels(ghost)
    kernels, error = fit_closed_form(start, seen.used, *parts)
    write_kernels(ghost, kernels)
    return FitResult(torch.zeros_like(seen.used), error / float(energy))


def _fit(ghost: GhostConv2d, seen: FitProblem, held: FitProblem, energy: torch.Tensor) -> FitResult:
    """Fit in place to what is seen; each step stays that lowers the error on what was held back."""
    best = _measure(ghost, held, torch.zeros_like(seen.used), energy)
    for primary_too in (False, True) if ghost.ghosts_per_group else (True,):
        if best.error < EXACT_ERROR:
            break
        before = _parameters(ghost)
        if primary_too:
            _fit_primary(ghost, seen, held, best.shift)
        after = _measure(ghost, held, _fit_cheap(ghost, seen, held, best.shift), energy)
        if after.error < best.error:
            best = after
        else:
            _set_parameters(ghost, before)
    return best


def _energy(problem: FitProblem) -> torch.Tensor:
    """Sum of the channels' variances over all images.

    Few positions show too little of the variance, and one shows none, so the second moment
    replaces a part of it.
    """
    square = _sum(problem, problem.y)
    known = problem.positions / (problem.positions + POOLED_POSITIONS)
    varied = _sum(problem, problem.centred(problem.y))
    return (known * varied + (1 - known) * square).clamp_min(EXACT_ERROR * square + 1e-30)


def _by_computed_channel(
    ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor, free: bool
) -> FitProblem:
    order: Any = ghost.order
    target = torch.zeros(ghost.num_computed(), dtype=torch.long, device=y.device)
    target[order] = torch.arange(len(order), device=y.device)
    used = torch.zeros(ghost.num_computed(), device=y.device, dtype=torch.float64)
    used[order] = 1
    return FitProblem(x, y[:, target], used, free)


def _gap(
    ghost: GhostConv2d, problem: FitProblem, shift: torch.Tensor | None = None
) -> torch.Tensor:
    """Targets less what the Ghost gives with a shift, (N, computed, rows, W')."""
    gap = (problem.y - ghost_channels(ghost, problem.x))[:, :, problem.rows]
    return gap if shift is None else gap - shift.to(gap)[:, None, None]


def _linear(ghost: GhostConv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """All computed channels of the Ghost with other primary kernels and no bias."""
    primary = _without_bias(ghost.primary_conv, x, weight)
    if not ghost.ghosts_per_group:
        return primary
    cheap = _cheap(ghost)
    ghosts = _without_bias(cheap, primary[:, : ghost.num_ghosted], cheap.weight)
    return torch.cat((primary, ghosts), dim=1)


def _cheap(ghost: GhostConv2d) -> nn.Conv2d:
    return cast(nn.Conv2d, ghost.cheap_operation)


def _without_bias(conv: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Not the bare convolution, because subclasses pad in their own ways.
    parameters = {'weight': weight}
    if conv.bias is not None:
        parameters['bias'] = torch.zeros_like(conv.bias)
    output: torch.Tensor = functional_call(conv, parameters, x)
    return output


def _fit_primary(
    ghost: GhostConv2d, seen: FitProblem, held: FitProblem, shift: torch.Tensor
) -> None:
    """Some conjugate gradient steps on all primary kernels at once, each a system of its own."""
    conv = ghost.primary_conv
    solve_inputs, ridge = _preconditioner(ghost, seen)
    scale = _cluster_scale(ghost, seen.used)[:, None]
    delta = torch.zeros_like(conv.weight).flatten(1).double()
    residual = _weight_gradient(ghost, seen, conv.weight, _gap(ghost, seen, shift))
    direction, product = torch.zeros_like(delta), torch.ones_like(scale)
    for _ in range(CG_STEPS):
        solved = solve_inputs(residual) / scale
        product, before = (residual * solved).sum(1, keepdim=True), product
        direction = solved + torch.nan_to_num(product / before, posinf=0, neginf=0) * direction
        applied = (
            _weight_gradient(ghost, seen, direction.to(conv.weight).view_as(conv.weight))
            + scale * ridge * direction
        )
        # Kernels that are as good as they get have no curvature left but rounding.
        curvature = (direction * applied).sum(1, keepdim=True)
        step = torch.where(curvature > 1e-30, product / curvature, 0)
        delta, residual = delta + step * direction, residual - step * applied
    gradient = _weight_gradient(ghost, held, conv.weight, _gap(ghost, held, shift))
    applied = _weight_gradient(ghost, held, delta.to(conv.weight).view_as(conv.weight))
    steps = line_search(held.positions, (delta * gradient).sum(1), (delta * applied).sum(1))
    delta = delta * steps[:, None]
    conv.weight += delta.to(conv.weight).view_as(conv.weight)


def _match_means(ghost: GhostConv2d, problem: FitProblem, shift: torch.Tensor) -> torch.Tensor:
    """Bring the means of the channels to those of their targets, by biases in place or by a shift.

    Args:
        ghost: Its biases take the change, if it has any.
        problem: Inputs and targets.
        shift: (computed,) that is added to the channels by now.

    Returns:
        (computed,) the shift afterwards.
    """
    if not problem.free:
        return shift
    if ghost.primary_conv.bias is None:
        return shift + mean_gap(_gap(ghost, problem, shift)) * problem.used
    size = len(ghost.primary_conv.bias)
    parts = [(ghost.primary_conv.bias, slice(size))]
    if ghost.ghosts_per_group:
        parts.append((_cheap(ghost).bias, slice(size, None)))
    for bias, part in parts:
        if bias is not None:
            bias += (mean_gap(_gap(ghost, problem)) * problem.used)[part].to(bias)
    return shift


def _match_variances(ghost: GhostConv2d, problem: FitProblem) -> None:
    """Scale channels in place, so that they vary more nearly as their targets do.

    Least squares with errors in the inputs give outputs that vary too little. Over the layers of a
    network that adds up, and predictions get flat: EfficientNet-Lite0 at 80 % of its multiply-adds
    had an entropy of 3.2 nats without this, 2.0 with it, and 1.5 before.

    Source: Jordan et al., REPAIR, ICLR 2023 (arXiv 2211.08403), which rescales after all layers.
    """
    wanted, given = (
        problem.centred(maps).square().mean((0, 2, 3), dtype=torch.float64)
        for maps in (problem.y, ghost_channels(ghost, problem.x))
    )
    lowest = 1e-9 * wanted.mean().clamp_min(1e-30)
    ratio = (wanted + lowest) / (given + lowest)
    scale = (0.5 * VARIANCE_STRENGTH * ratio.log()).exp().clamp(1 / MAX_SCALE, MAX_SCALE)
    scale = torch.where(problem.used > 0, scale, 1.0)
    primary = scale[: ghost.primary]
    ghost.primary_conv.weight *= primary.view(-1, 1, 1, 1).to(ghost.primary_conv.weight)
    if ghost.ghosts_per_group:
        weight = _cheap(ghost).weight
        shape = (-1, ghost.ghosts_per_group, ghost.group_size, *weight.shape[2:])
        own = scale[ghost.primary :].view(-1, ghost.ghosts_per_group, 1, 1, 1)
        mixed = primary[: ghost.num_ghosted].view(-1, 1, ghost.group_size, 1, 1)
        weight.copy_((weight.view(shape) * (own / mixed).to(weight)).view_as(weight))


def mean_gap(gap: torch.Tensor) -> torch.Tensor:
    """(C,) :func:`shared_mean` of (N, C, H, W); a single image counts as several, by rows."""
    parts = torch.split(gap, 1) if len(gap) > 1 else gap.tensor_split(MIN_ROWS, dim=2)
    means = [p.mean((0, 2, 3), dtype=torch.float64) for p in parts if p.numel()]
    return shared_mean(torch.stack(means))


def shared_mean(means: torch.Tensor) -> torch.Tensor:
    """Mean of some estimates, scaled down as they disagree.

    All channels are multiplied by the share that is best when each estimate in turn is predicted
    from the others; it is 0 for a single one.

    Args:
        means: (n, C) one estimate for each image.

    Returns:
        (C,)
    """
    others = (means.sum(0) - means) / max(1, len(means) - 1)
    share = (means * others).sum() / others.square().sum().clamp_min(1e-30)
    return share.clamp(0, 1) * means.mean(0)


def _weight_gradient(
    ghost: GhostConv2d, problem: FitProblem, kernel: torch.Tensor, gap: torch.Tensor | None = None
) -> torch.Tensor:
    """Gradient of the squared error with respect to the primary weights, negative and halved.

    Args:
        ghost: It is linear in its primary weights, so the gradient is its adjoint on the gap.
        problem: Inputs, and which channels count.
        kernel: Primary weights.
        gap: (N, computed, rows, W') targets less outputs; what ``kernel`` gives without.

    Returns:
        (m, A) in float64 for m kernels of A entries, mean over positions.
    """
    with torch.enable_grad():
        kernel = kernel.detach().clone().requires_grad_()
        maps = _linear(ghost, problem.x, kernel)[:, :, problem.rows]
        outer = problem.centred(maps.detach() if gap is None else gap)
        outer = outer * problem.used.to(outer)[:, None, None]
        gradient = torch.autograd.grad(maps, kernel, outer)[0]
    return gradient.flatten(1).double() / (maps.numel() // maps.shape[1])


def _cluster_scale(ghost: GhostConv2d, used: torch.Tensor) -> torch.Tensor:
    """(m,) energy with which each primary channel enters the outputs of its cluster."""
    scale = used[: ghost.primary].clone()
    if not ghost.ghosts_per_group:
        return scale
    energy = _cheap(ghost).weight.double().square().sum((2, 3))  # (ghosts, group_size)
    energy = energy * used[ghost.primary :, None]
    energy = energy.view(-1, ghost.ghosts_per_group, ghost.group_size).sum(1)
    scale[: ghost.num_ghosted] += energy.flatten()
    return scale.clamp_min(1e-30)


def _preconditioner(ghost: GhostConv2d, problem: FitProblem) -> tuple[Solve, torch.Tensor]:
    """Solver of the inputs' covariance for (m, A) right-hand sides, group by group.

    Returns:
        The solver, and the ridge that it has in it, (m, 1).
    """
    conv, groups = ghost.primary_conv, ghost.groups
    size = conv.weight[0].numel()
    columns = size + PRECONDITIONER_POSITIONS
    # It only has to be near, so the inputs' own precision will do.
    moment, mean = problem.x.new_zeros(groups, size, size), problem.x.new_zeros(groups, size, 1)
    seen = 0
    for x in torch.split(problem.x, 8):
        patches = _patches(conv, x)  # (groups, A, pixels)
        share = max(1, columns * len(x) // len(problem.x))
        patches = patches[:, :, :: max(1, patches.shape[2] // share)]
        moment += patches @ patches.transpose(1, 2)
        mean += patches.sum(2, keepdim=True)
        seen += patches.shape[2]
    moment /= seen  # in place, because it has 85 MB for a 3 x 3 conv of 512 channels
    mean /= seen
    if problem.free:
        moment.baddbmm_(mean, mean.transpose(1, 2), alpha=-1)
    diagonal = (moment.diagonal(dim1=1, dim2=2) + mean.square()[..., 0] * problem.free).mean(1)
    damping = max(MIN_RIDGE, RIDGE_PRIMARY * size / problem.positions) * diagonal.clamp_min(1e-30)
    moment.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    factor, failed = torch.linalg.cholesky_ex(moment)
    if failed.any():
        factor = torch.linalg.cholesky_ex(moment.double())[0].to(moment)
    del moment
    inverse = torch.cholesky_inverse(factor)  # a product with it is faster than solving

    def solve_inputs(right: torch.Tensor) -> torch.Tensor:
        return (right.view(groups, -1, size).to(inverse) @ inverse).double().view(-1, size)

    ridge = damping.double().repeat_interleave(conv.out_channels // groups)[:, None]
    return solve_inputs, ridge


def _patches(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """(groups, A, pixels) of what the kernels see away from the border."""
    spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    missing = [max(0, span - size) for span, size in zip(spans, x.shape[2:], strict=True)]
    x = F.pad(x, (0, missing[1], 0, missing[0]))
    patches = F.unfold(x.float(), conv.kernel_size, conv.dilation, 0, conv.stride)
    return (
        patches.transpose(0, 1)
        .flatten(1)
        .view(conv.groups, -1, patches.shape[0] * patches.shape[2])
    )


def _fit_cheap(
    ghost: GhostConv2d, seen: FitProblem, held: FitProblem, shift: torch.Tensor
) -> torch.Tensor:
    """Fit the cheap kernels in place, for the primary channels as they are.

    Returns:
        (computed,) the shift that follows, if means are free and no bias takes it.
    """
    if not ghost.ghosts_per_group:
        return _match_means(ghost, seen, shift)
    conv, cheap = ghost.primary_conv, _cheap(ghost)
    size, mode = cheap.kernel_size[0], conv.padding_mode
    constant = seen.free or cheap.bias is not None
    (maps, gap), (held_maps, held_gap) = (
        (
            conv(problem.x)[:, : ghost.num_ghosted],
            _gap(ghost, problem, shift)[:, ghost.primary :],
        )
        for problem in (seen, held)
    )
    positions = min(CHEAP_POSITIONS, maps[:, 0].numel())
    group_size = ghost.group_size
    terms = size**2 * group_size
    some = max(1, CHEAP_ELEMENTS // (positions * (terms + constant)))  # groups at a time
    targets = gap.view(len(gap), -1, ghost.ghosts_per_group, *gap.shape[2:])
    delta = torch.cat(
        [
            _best_filters(here, there, size, mode, constant, seen.rows)
            for here, there in zip(
                torch.split(maps, some * group_size, 1), torch.split(targets, some, 1), strict=True
            )
        ]
    )
    kernels = delta[:, :terms].reshape(cheap.weight.shape).to(cheap.weight)
    change = _without_bias(cheap, held_maps, kernels)[:, :, held.rows]
    if constant:
        change = change + delta[:, -1].to(change)[:, None, None]
    slope, curvature = ((other * change).double().sum((0, 2, 3)) for other in (held_gap, change))
    steps = line_search(held.positions, slope, curvature)
    cheap.weight += steps.to(kernels)[:, None, None, None] * kernels
    if cheap.bias is not None:
        cheap.bias += (steps * delta[:, -1]).to(cheap.bias)
    return _match_means(ghost, seen, shift)


def _best_filters(
    maps: torch.Tensor, wanted: torch.Tensor, size: int, mode: str, constant: bool, rows: slice
) -> torch.Tensor:
    """Filters with a ridge of as many positions as they have unknowns.

    Args:
        maps: (N, n * group_size, H, W) inputs of the filters, group by group.
        wanted: (N, n, ghosts_per_group, rows, W) targets.
        size: Of the filters, pixels.
        mode: Of their padding.
        constant: Whether each has a constant as its last term.
        rows: Rows of ``maps`` whose positions count.

    Returns:
        (n * ghosts_per_group, terms)
    """
    taps = [flat.double() for flat in shifted(maps, size, mode, CHEAP_POSITIONS, rows)]
    groups = wanted.shape[1]
    seen = torch.stack(taps, dim=1).view(groups, -1, taps[0].shape[1])  # (n, terms, positions)
    if constant:
        seen = torch.cat((seen, torch.ones_like(seen[:, :1])), dim=1)
    step = sampling_step(wanted[:, :, 0], CHEAP_POSITIONS)
    wanted = wanted.permute(1, 2, 0, 3, 4).flatten(2)[:, :, ::step].double()
    own = seen @ seen.transpose(1, 2) / seen.shape[2]
    cross = seen @ wanted.transpose(1, 2) / seen.shape[2]
    return solve(own, cross, seen.shape[1] / seen.shape[2]).transpose(1, 2).flatten(0, 1)


def _sum(problem: FitProblem, maps: torch.Tensor) -> torch.Tensor:
    """Mean square of each used channel, added up."""
    return (maps.square().mean((0, 2, 3), dtype=torch.float64) * problem.used).sum()


def _measure(
    ghost: GhostConv2d, problem: FitProblem, shift: torch.Tensor, energy: torch.Tensor
) -> FitResult:
    return FitResult(shift, float(_sum(problem, _gap(ghost, problem, shift)) / energy))
