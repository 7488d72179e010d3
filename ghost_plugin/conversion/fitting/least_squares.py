"""A Ghost conv fitted to targets on the inputs that it really gets, by regularised least squares.

With the cheap kernels fixed the Ghost is linear in its primary kernels, with these fixed it is
linear in the cheap ones. The first problem is solved by conjugate gradients, with the correlations
of the inputs as preconditioner (each primary kernel serves several outputs, so no closed form is
cheap); the second one in closed form.

Few images tell little. Each solve has a ridge towards the weights that the Ghost has already; its
strength is the number of unknowns over the number of positions. Some images, or some rows of a
single one, are held back from all solves. Each solution is only a direction: the Ghost goes along
it as far as lowers the error on what was held back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ...layers.ghost import GhostConv2d
from .channel_statistics import every, shifted, solve

STEPS = 6  # of conjugate gradients; on ResNet-20 a second round of both problems gained nothing
EXACT = 1e-12  # error below which there is nothing to fit
HOLDOUT_DIVISOR = 5  # one image in so many is held back
# Up to so many images all of them are held back in turn, in so many parts, and the fits averaged.
CROSS_IMAGES, CROSS_FOLDS = 16, 4
MIN_ROWS = 4  # rows of a single image's feature map from which a part of them is held back
POOLED_POSITIONS = 16  # held-back positions at which a channel's own step counts as all others'
DAMPING = 1e-3  # of the inputs' mean energy, at the least, on a step of the primary kernels
RIDGE_PRIMARY = 0.1  # of the same, times unknowns over positions
# What a fit looks at: images at the least, positions per entry of a primary kernel, positions
# behind the cheap kernels, positions per entry for the preconditioner, and elements at the most.
# Feature maps stay below the 32 MB from which on glibc asks the system for each and gives it back.
PICTURES, PER_ENTRY, CHEAP_PIXELS, COLUMNS, VALUES = 256, 128, 16_384, 1, 15 * 2**19
TERMS = 15 * 2**18  # float64 values that the cheap kernels of some primary maps see at a time

Solve = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FitProblem:
    """What a Ghost conv shall give.

    Attributes:
        x: (N, in_channels, H, W) inputs.
        y: (N, places, H', W') targets by place: primary channels first, then ghost channels.
        wanted: (places,) 1 for places with a target, 0 for those that are not used.
        free: Whether means are matched by what follows (a bias, or a norm's running mean).
        start, stop: First row of the targets that counts, and the one behind the last.
    """

    x: torch.Tensor
    y: torch.Tensor
    wanted: torch.Tensor
    free: bool
    start: int = 0
    stop: int | None = None

    @property
    def rows(self) -> slice:
        """Rows of the targets that count."""
        return slice(self.start, self.stop)

    def folds(self) -> list[tuple['FitProblem', 'FitProblem']]:
        """Pairs of what to fit to and what is held back to see how far a fit carries.

        Returns:
            One pair, or where images are few several, each of which holds back others. Of a
            single image some rows are held back; no pair where it has too few.
        """
        number, height = len(self.x), self.y.shape[2]
        if number > CROSS_IMAGES:
            parts = [torch.arange(number - num_held(number, HOLDOUT_DIVISOR), number)]
        elif number > 1:
            parts = torch.arange(number).tensor_split(min(number, CROSS_FOLDS))
        elif height < MIN_ROWS:
            return []
        else:
            seen = height - height // MIN_ROWS
            return [(replace(self, stop=seen), replace(self, start=seen))]
        seen = [torch.ones(number, dtype=torch.bool).index_fill(0, part, False) for part in parts]
        return [(self._some(mask), self._some(~mask)) for mask in seen]

    def _some(self, chosen: torch.Tensor) -> 'FitProblem':
        chosen = chosen.to(self.x.device)
        return replace(self, x=self.x[chosen], y=self.y[chosen])

    @property
    def positions(self) -> int:
        """Number of positions that count, over all images."""
        return self.y[:, 0, self.rows].numel()

    def centred(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps less their means, where these are free."""
        return maps - maps.mean((0, 2, 3), keepdim=True) if self.free else maps


def num_held(number: int, divisor: int) -> int:
    """How many of a number of images are held back: one in ``divisor``, but one of two."""
    return max(1, number // divisor) if number > 1 else 0


@dataclass(frozen=True)
class FitResult:
    """What a fit reached.

    Attributes:
        shift: (out_channels,) to be added to the channels where the Ghost has no bias of its own.
        error: Squared error of the channels relative to their variance.
    """

    shift: torch.Tensor
    error: float


def num_samples_for(ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor) -> int:
    """How many images such as those of (N, C, H, W) inputs and targets a fit shall look at."""
    wanted = PER_ENTRY * ghost.primary_conv.weight[0].numel() // y[0, 0].numel()
    most = VALUES // max(x[0].numel(), y[0].numel())
    return max(1, min(most, max(PICTURES, wanted)))


@torch.no_grad()
def refit(ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor, free: bool) -> FitResult:
    """Fit ``ghost`` in place; its channel permutation stays, and it never ends worse than it was.

    Args:
        ghost: With ``permuted=True`` and a depthwise cheap operation.
        x: (N, in_channels, H, W) inputs.
        y: (N, out_channels, H', W') targets.
        free: Whether a norm behind takes the shift of the means; a bias always does.
    """
    task = _by_place(ghost, x, y, free or ghost.primary_conv.bias is not None)
    energy = _energy(task)
    shift = torch.zeros_like(task.wanted)
    start = _parameters(ghost)
    fits = []
    for seen, held in task.folds():
        fits.append((_fit(ghost, seen, held, energy), _parameters(ghost)))
        _set_parameters(ghost, start)
    if not fits:
        return FitResult(shift[ghost.order], _measure(ghost, task, shift, energy).error)
    found = [parameters for _, parameters in fits]
    _set_parameters(ghost, {name: sum(p[name] for p in found) / len(fits) for name in start})
    shift = _match_means(ghost, task, sum(one.shift for one, _ in fits) / len(fits))
    return FitResult(shift[ghost.order], sum(one.error for one, _ in fits) / len(fits))


def _parameters(ghost: GhostConv2d) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in ghost.named_parameters()}


def _set_parameters(ghost: GhostConv2d, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in ghost.named_parameters():
        parameter.copy_(values[name])


def _fit(ghost: GhostConv2d, seen: FitProblem, held: FitProblem, energy: torch.Tensor) -> FitResult:
    """Fit in place to what is seen; each step stays that lowers the error on what was held back."""
    best = _measure(ghost, held, torch.zeros_like(seen.wanted), energy)
    for fit_kernels in (None, _fit_primary):
        if best.error < EXACT:
            break
        before = _parameters(ghost)
        if fit_kernels is not None:
            fit_kernels(ghost, seen, held, best.shift)
        after = _measure(ghost, held, _fit_cheap(ghost, seen, held, best.shift), energy)
        if after.error < best.error:
            best = after
        else:
            _set_parameters(ghost, before)
    return best


def _energy(task: FitProblem) -> torch.Tensor:
    """Sum of the channels' variances over all images.

    Few positions show too little of the variance, and one shows none; there the second moment
    stands in for a part of it.
    """
    square = _sum(task, task.y)
    known = task.positions / (task.positions + POOLED_POSITIONS)
    varied = _sum(task, task.centred(task.y))
    return (known * varied + (1 - known) * square).clamp_min(EXACT * square + 1e-30)


def _by_place(ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor, free: bool) -> FitProblem:
    order = ghost.order
    target = torch.zeros(ghost.num_computed(), dtype=torch.long, device=y.device)
    target[order] = torch.arange(len(order), device=y.device)
    wanted = torch.zeros(ghost.num_computed(), device=y.device, dtype=torch.float64)
    wanted[order] = 1
    return FitProblem(x, y[:, target], wanted, free)


def _gap(ghost: GhostConv2d, task: FitProblem, shift: torch.Tensor | None = None) -> torch.Tensor:
    """Targets less what the Ghost gives with a shift, (N, places, rows, W')."""
    gap = task.y[:, :, task.rows] - _places(ghost, task.x)[:, :, task.rows]
    return gap if shift is None else gap - shift.to(gap)[:, None, None]


def _shares(task: FitProblem, wanted: torch.Tensor, bent: torch.Tensor) -> torch.Tensor:
    """How far to go along each of some directions, within 0..1.

    Args:
        task: What was held back.
        wanted: (n,) slope of the held-back squared error along each direction.
        bent: (n,) curvature of it.

    Returns:
        (n,) The best share of each direction, pooled over directions as far as few positions
        were held back.
    """
    pooled = POOLED_POSITIONS / task.positions
    wanted, bent = (v + pooled * v.mean() for v in (wanted.double(), bent.double()))
    return torch.nan_to_num(wanted / bent, posinf=0, neginf=0).clamp(0, 1)


def _linear(ghost: GhostConv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """All places of the Ghost with other primary kernels and no bias."""
    primary = _without_bias(ghost.primary_conv, x, weight)
    cheap = ghost.cheap_operation
    ghosts = _without_bias(cheap, primary[:, : ghost.num_ghosted], cheap.weight)
    return torch.cat((primary, ghosts), dim=1)


def _without_bias(conv: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Not the bare convolution: subclasses pad as they like.
    given = {'weight': weight}
    if conv.bias is not None:
        given['bias'] = torch.zeros_like(conv.bias)
    return functional_call(conv, given, x)


def _fit_primary(
    ghost: GhostConv2d, seen: FitProblem, held: FitProblem, shift: torch.Tensor
) -> None:
    """Some conjugate gradient steps on the primary kernels, all at once, each its own system."""
    conv = ghost.primary_conv
    solve_inputs, ridge = _preconditioner(ghost, seen)
    scale = _family_scale(ghost, seen.wanted)[:, None]
    delta = torch.zeros_like(conv.weight).flatten(1).double()
    residual = _weight_gradient(ghost, seen, conv.weight, _gap(ghost, seen, shift))
    way, product = torch.zeros_like(delta), torch.ones_like(scale)
    for _ in range(STEPS):
        ahead = solve_inputs(residual) / scale
        product, before = (residual * ahead).sum(1, keepdim=True), product
        way = ahead + torch.nan_to_num(product / before, posinf=0, neginf=0) * way
        bent = (
            _weight_gradient(ghost, seen, way.to(conv.weight).view_as(conv.weight))
            + scale * ridge * way
        )
        # Kernels that are as good as they get have no curvature left but rounding.
        curvature = (way * bent).sum(1, keepdim=True)
        step = torch.where(curvature > 1e-30, product / curvature, 0)
        delta, residual = delta + step * way, residual - step * bent
    wanted = _weight_gradient(ghost, held, conv.weight, _gap(ghost, held, shift))
    bent = _weight_gradient(ghost, held, delta.to(conv.weight).view_as(conv.weight))
    delta = delta * _shares(held, (delta * wanted).sum(1), (delta * bent).sum(1))[:, None]
    conv.weight += delta.to(conv.weight).view_as(conv.weight)


def _match_means(ghost: GhostConv2d, task: FitProblem, shift: torch.Tensor) -> torch.Tensor:
    """Bring the means of the channels to those of their targets, by biases in place or by a shift.

    Args:
        ghost: Its biases take the change, if it has any.
        task: What the means are taken over.
        shift: (places,) What is added to the channels by now.

    Returns:
        (places,) The shift afterwards.
    """
    if not task.free:
        return shift
    if ghost.primary_conv.bias is None:
        return shift + mean_gap(_gap(ghost, task, shift)) * task.wanted
    size = len(ghost.primary_conv.bias)
    for conv, part in (
        (ghost.primary_conv, slice(size)),
        (ghost.cheap_operation, slice(size, None)),
    ):
        conv.bias += (mean_gap(_gap(ghost, task)) * task.wanted)[part].to(conv.bias)
    return shift


def mean_gap(gap: torch.Tensor) -> torch.Tensor:
    """(C,) :func:`shared_mean` of (N, C, H, W); rows stand for images where there is only one."""
    parts = gap.split(1) if len(gap) > 1 else gap.tensor_split(MIN_ROWS, dim=2)
    means = [p.mean((0, 2, 3), dtype=torch.float64) for p in parts if p.numel()]
    return shared_mean(torch.stack(means))


def shared_mean(means: torch.Tensor) -> torch.Tensor:
    """The mean of some estimates, less as they disagree.

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
    ghost: GhostConv2d, task: FitProblem, kernel: torch.Tensor, gap: torch.Tensor | None = None
) -> torch.Tensor:
    """What a gap of the maps asks of the primary kernels: (m, A) in float64, mean over pixels.

    That is the adjoint of the Ghost on the gap of wanted maps, less its mean where means are free.
    The gap is what ``kernel`` gives where none is given.
    """
    with torch.enable_grad():
        kernel = kernel.detach().clone().requires_grad_()
        maps = _linear(ghost, task.x, kernel)[:, :, task.rows]
        outer = task.centred(maps.detach() if gap is None else gap)
        outer = outer * task.wanted.to(outer)[:, None, None]
        pulled = torch.autograd.grad(maps, kernel, outer)[0]
    return pulled.flatten(1).double() / (maps.numel() // maps.shape[1])


def _family_scale(ghost: GhostConv2d, wanted: torch.Tensor) -> torch.Tensor:
    """(m,) how strongly each primary map shows in all the outputs that it serves."""
    scale = wanted[: ghost.primary].clone()
    energy = ghost.cheap_operation.weight.double().square().sum((1, 2, 3))
    scale[: ghost.num_ghosted] += (
        (energy * wanted[ghost.primary :]).view(-1, ghost.ghosts_per_primary).sum(1)
    )
    return scale.clamp_min(1e-30)


def _preconditioner(ghost: GhostConv2d, task: FitProblem) -> tuple[Solve, torch.Tensor]:
    """Solver of the inputs' covariance for (m, A) right-hand sides, group by group.

    Returns:
        The solver, and the ridge that it has in it, (m, 1).
    """
    conv, groups = ghost.primary_conv, ghost.groups
    size = conv.weight[0].numel()
    wanted = COLUMNS * size + 2048
    # It only has to be near, so the inputs' own precision will do.
    moment, mean, seen = task.x.new_zeros(groups, size, size), task.x.new_zeros(groups, size, 1), 0
    for x in task.x.split(8):
        patches = _patches(conv, x)  # (groups, A, pixels)
        share = max(1, wanted * len(x) // len(task.x))
        patches = patches[:, :, :: max(1, patches.shape[2] // share)]
        moment += patches @ patches.transpose(1, 2)
        mean += patches.sum(2, keepdim=True)
        seen += patches.shape[2]
    moment /= seen  # in place, as for a 3 x 3 conv of 512 maps that is 85 MB
    mean /= seen
    if task.free:
        moment.baddbmm_(mean, mean.transpose(1, 2), alpha=-1)
    diagonal = (moment.diagonal(dim1=1, dim2=2) + mean.square()[..., 0] * task.free).mean(1)
    damping = max(DAMPING, RIDGE_PRIMARY * size / task.positions) * diagonal.clamp_min(1e-30)
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
    lack = [max(0, span - side) for span, side in zip(spans, x.shape[2:], strict=True)]
    x = F.pad(x, (0, lack[1], 0, lack[0]))
    patches = F.unfold(x.float(), conv.kernel_size, conv.dilation, 0, conv.stride)
    return (
        patches.transpose(0, 1)
        .flatten(1)
        .view(conv.groups, -1, patches.shape[0] * patches.shape[2])
    )


def _fit_cheap(
    ghost: GhostConv2d, seen: FitProblem, held: FitProblem, shift: torch.Tensor
) -> torch.Tensor:
    """Better cheap kernels for the primary channels as they are.

    Returns:
        (places,) The shift that follows, where means are free and no bias takes it.
    """
    conv, cheap = ghost.primary_conv, ghost.cheap_operation
    side = cheap.kernel_size[0]
    constant = seen.free or cheap.bias is not None
    parts = [
        (conv(task.x)[:, : ghost.num_ghosted], _gap(ghost, task, shift)[:, ghost.primary :])
        for task in (seen, held)
    ]
    pixels = min(CHEAP_PIXELS, parts[0][0][:, 0].numel())
    some = max(1, TERMS // (pixels * (side**2 + constant)))
    wanted = parts[0][1].unflatten(1, (ghost.num_ghosted, ghost.ghosts_per_primary))
    delta = torch.cat(
        [
            _best_filters(here, there, side, conv.padding_mode, constant, seen.rows)
            for here, there in zip(parts[0][0].split(some, 1), wanted.split(some, 1), strict=True)
        ]
    )
    kernels = delta[:, : side**2].view_as(cheap.weight).to(cheap.weight)
    moved = _without_bias(cheap, parts[1][0], kernels)[:, :, held.rows]
    if constant:
        moved = moved + delta[:, -1].to(moved)[:, None, None]
    slope, curvature = ((other * moved).double().sum((0, 2, 3)) for other in (parts[1][1], moved))
    shares = _shares(held, slope, curvature)
    cheap.weight += shares.to(kernels)[:, None, None, None] * kernels
    if cheap.bias is not None:
        cheap.bias += (shares * delta[:, -1]).to(cheap.bias)
    return _match_means(ghost, seen, shift)


def _best_filters(
    maps: torch.Tensor,
    wanted: torch.Tensor,
    side: int,
    mode: str,
    constant: bool,
    rows: slice,
) -> torch.Tensor:
    """Filters with a ridge of as many positions as they have unknowns.

    Args:
        maps: (N, n, H, W) inputs of the filters.
        wanted: (N, n, copies, rows, W) what they shall give.
        side: Of the filters, pixels.
        mode: Of their padding.
        constant: Whether each has a constant as its last term.
        rows: Rows of ``maps`` whose positions count.

    Returns:
        (n * copies, terms)
    """
    terms = [flat.double() for flat in shifted(maps, side, mode, CHEAP_PIXELS, rows)]
    if constant:
        terms.append(torch.ones_like(terms[0]))
    seen = torch.stack(terms, dim=1)  # (n, terms, positions)
    step = every(wanted[:, :, 0], CHEAP_PIXELS)
    wanted = wanted.permute(1, 2, 0, 3, 4).flatten(2)[:, :, ::step].double()
    own = seen @ seen.transpose(1, 2) / seen.shape[2]
    cross = seen @ wanted.transpose(1, 2) / seen.shape[2]
    return solve(own, cross, len(terms) / seen.shape[2]).transpose(1, 2).flatten(0, 1)


def _places(ghost: GhostConv2d, x: torch.Tensor) -> torch.Tensor:
    primary = ghost.primary_conv(x)
    return torch.cat((primary, ghost.ghosts(primary)), dim=1)


def _sum(task: FitProblem, maps: torch.Tensor) -> torch.Tensor:
    """Mean square of each wanted channel, added up."""
    return (maps.double().square().mean((0, 2, 3)) * task.wanted).sum()


def _measure(
    ghost: GhostConv2d, task: FitProblem, shift: torch.Tensor, energy: torch.Tensor
) -> FitResult:
    return FitResult(shift, float(_sum(task, _gap(ghost, task, shift)) / energy))
