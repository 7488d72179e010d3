"""A Ghost conv fitted to targets on the inputs that it really gets, by least squares in turns.

With the cheap kernels fixed the Ghost is linear in its primary kernels, with these fixed it is
linear in the cheap ones. The first problem is solved by conjugate gradients, with the correlations
of the inputs as preconditioner (each primary kernel serves several outputs, so no closed form is
cheap); the second one in closed form.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ..layers.ghost import GhostConv2d
from .correlations import every, shifted, solve

STEPS = 6  # of conjugate gradients; on ResNet-20 a second turn of both problems gained nothing
EXACT = 1e-12  # error below which there is nothing to fit
HELD = 5  # one picture in so many is held back
DAMPING = 1e-3  # of the inputs' mean energy, on a step of the primary kernels
# What a fit looks at: pictures at the least, pixels per entry of a primary kernel, pixels behind
# the cheap kernels, pixels per entry for the preconditioner, and values of maps at the most.
# Maps stay below the 32 MB from which on glibc asks the system for each and gives it back.
PICTURES, PER_ENTRY, CHEAP_PIXELS, COLUMNS, VALUES = 256, 128, 16_384, 1, 15 * 2**19
TERMS = 15 * 2**18  # float64 values that the cheap kernels of some primary maps see at a time

Solve = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Task:
    """What a Ghost conv shall give.

    Attributes:
        x: (N, in_channels, H, W) inputs.
        y: (N, places, H', W') targets by place: primary maps first, then ghost maps.
        wanted: (places,) 1 for places with a target, 0 for those that are not used.
        free: Whether means are matched by what follows (a bias, or a norm's running mean).
    """

    x: torch.Tensor
    y: torch.Tensor
    wanted: torch.Tensor
    free: bool

    def parted(self) -> tuple['Task', 'Task']:
        """Pictures to fit to, and a few held back to see what the fit is worth."""
        number = len(self.x) - len(self.x) // HELD
        if number == len(self.x):
            return self, self
        seen, held = ((self.x[part], self.y[part]) for part in (slice(number), slice(number, None)))
        return replace(self, x=seen[0], y=seen[1]), replace(self, x=held[0], y=held[1])

    def centred(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps less their means, where these are free."""
        return maps - maps.mean((0, 2, 3), keepdim=True) if self.free else maps


@dataclass
class Fitted:
    """What a fit reached.

    Attributes:
        shift: (out_channels,) to be added to the maps where the Ghost has no bias of its own.
        error: Squared error of the maps relative to their variance.
    """

    shift: torch.Tensor
    error: float


def enough(ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor) -> int:
    """How many pictures such as those of (N, C, H, W) inputs and targets a fit shall look at."""
    wanted = PER_ENTRY * ghost.primary_conv.weight[0].numel() // y[0, 0].numel()
    most = VALUES // max(x[0].numel(), y[0].numel())
    return max(1, min(most, max(PICTURES, wanted)))


@torch.no_grad()
def refit(ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor, free: bool) -> Fitted:
    """Fit ``ghost`` in place; its order of maps stays, and it never ends worse than it was.

    Args:
        ghost: With ``permuted=True`` and a depthwise cheap operation.
        x: (N, in_channels, H, W) inputs.
        y: (N, out_channels, H', W') targets.
        free: Whether a norm behind takes the shift of the means; a bias always does.
    """
    task = _by_place(ghost, x, y, free or ghost.primary_conv.bias is not None)
    seen, held = task.parted()
    # Of all pictures: a few of one pixel each hardly vary, and one alone does not at all.
    energy = _sum(task, task.centred(task.y)).clamp_min(EXACT * _sum(task, task.y) + 1e-30)
    best = _measure(ghost, held, _fit_cheap(ghost, seen), energy)
    if best.error >= EXACT:
        state = {name: tensor.clone() for name, tensor in ghost.state_dict().items()}
        _fit_primary(ghost, seen, held)
        after = _measure(ghost, held, _fit_cheap(ghost, seen), energy)
        if after.error < best.error:
            best = after
        else:
            ghost.load_state_dict(state)
    return Fitted(best.shift[ghost.order], best.error)


def _by_place(ghost: GhostConv2d, x: torch.Tensor, y: torch.Tensor, free: bool) -> Task:
    target = torch.zeros(ghost.made(), dtype=torch.long, device=y.device)
    target[ghost.order] = torch.arange(len(ghost.order), device=y.device)
    wanted = torch.zeros(ghost.made(), device=y.device, dtype=torch.float64)
    wanted[ghost.order] = 1
    return Task(x, y[:, target], wanted, free)


def _linear(ghost: GhostConv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """All places of the Ghost with other primary kernels and no bias."""
    primary = _without_bias(ghost.primary_conv, x, weight)
    cheap = ghost.cheap_operation
    ghosts = _without_bias(cheap, primary[:, : ghost.served], cheap.weight)
    return torch.cat((primary, ghosts), dim=1)


def _without_bias(conv: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Not the bare convolution: subclasses pad as they like.
    given = {'weight': weight}
    if conv.bias is not None:
        given['bias'] = torch.zeros_like(conv.bias)
    return functional_call(conv, given, x)


def _fit_primary(ghost: GhostConv2d, task: Task, held: Task) -> None:
    """Some conjugate gradient steps on the primary kernels, all at once, each its own system.

    Each kernel then goes as far on that way as is best for the pictures that were held back.
    """
    conv, solve_inputs = ghost.primary_conv, _preconditioner(ghost, task)
    scale = _family_scale(ghost, task.wanted)[:, None]
    delta = torch.zeros_like(conv.weight).flatten(1).double()
    residual = _pull(ghost, task, conv.weight, task.y - _places(ghost, task.x))
    way, product = torch.zeros_like(delta), torch.ones_like(scale)
    for _ in range(STEPS):
        ahead = solve_inputs(residual) / scale
        product, before = (residual * ahead).sum(1, keepdim=True), product
        way = ahead + torch.nan_to_num(product / before) * way
        bent = _pull(ghost, task, way.to(conv.weight).view_as(conv.weight))
        # Kernels that are as good as they get have no curvature left but rounding.
        curvature = (way * bent).sum(1, keepdim=True)
        step = torch.where(curvature > 1e-30, product / curvature, 0)
        delta, residual = delta + step * way, residual - step * bent
    delta = delta * _worth(ghost, held, delta)
    conv.weight += delta.to(conv.weight).view_as(conv.weight)
    if conv.bias is not None:
        gap = task.y[:, : len(conv.bias)] - conv(task.x)
        conv.bias += gap.mean((0, 2, 3))


def _worth(ghost: GhostConv2d, held: Task, delta: torch.Tensor) -> torch.Tensor:
    """(m, 1) share of each change within 0..1 that is best on other pictures."""
    weight = ghost.primary_conv.weight
    wanted = _pull(ghost, held, weight, held.y - _places(ghost, held.x))
    bent = _pull(ghost, held, delta.to(weight).view_as(weight))
    shares = (delta * wanted).sum(1, keepdim=True) / (delta * bent).sum(1, keepdim=True)
    return torch.nan_to_num(shares).clamp(0, 1)


def _pull(
    ghost: GhostConv2d, task: Task, kernel: torch.Tensor, gap: torch.Tensor | None = None
) -> torch.Tensor:
    """What a gap of the maps asks of the primary kernels: (m, A) in float64, mean over pixels.

    That is the adjoint of the Ghost on the gap of wanted maps, less its mean where means are free.
    The gap is what ``kernel`` gives where none is given.
    """
    with torch.enable_grad():
        kernel = kernel.detach().clone().requires_grad_()
        maps = _linear(ghost, task.x, kernel)
        outer = task.centred(maps.detach() if gap is None else gap)
        outer = outer * task.wanted.to(outer)[:, None, None]
        pulled = torch.autograd.grad(maps, kernel, outer)[0]
    return pulled.flatten(1).double() / (maps.numel() // maps.shape[1])


def _family_scale(ghost: GhostConv2d, wanted: torch.Tensor) -> torch.Tensor:
    """(m,) how strongly each primary map shows in all the outputs that it serves."""
    scale = wanted[: ghost.primary].clone()
    energy = ghost.cheap_operation.weight.double().square().sum((1, 2, 3))
    scale[: ghost.served] += (energy * wanted[ghost.primary :]).view(-1, ghost.copies).sum(1)
    return scale.clamp_min(1e-30)


def _preconditioner(ghost: GhostConv2d, task: Task) -> Solve:
    """Solver of the inputs' covariance for (m, A) right-hand sides, group by group."""
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
    diagonal = moment.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    damping = DAMPING * max(1.0, size / seen) * diagonal
    moment.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    factor, failed = torch.linalg.cholesky_ex(moment)
    if failed.any():
        factor = torch.linalg.cholesky_ex(moment.double())[0].to(moment)
    del moment
    inverse = torch.cholesky_inverse(factor)  # a product with it is faster than solving

    def solve_inputs(right: torch.Tensor) -> torch.Tensor:
        return (right.view(groups, -1, size).to(inverse) @ inverse).double().view(-1, size)

    return solve_inputs


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


def _fit_cheap(ghost: GhostConv2d, task: Task) -> torch.Tensor:
    """Best cheap kernels for the primary maps as they are; the shift that is left, by place."""
    conv, cheap = ghost.primary_conv, ghost.cheap_operation
    side = cheap.kernel_size[0]
    constant = task.free or cheap.bias is not None
    maps = conv(task.x)[:, : ghost.served]
    wanted = task.y[:, ghost.primary :].unflatten(1, (ghost.served, ghost.copies))
    pixels = min(CHEAP_PIXELS, maps[:, 0].numel())
    some = max(1, TERMS // (pixels * (side**2 + constant)))
    best = torch.cat(
        [
            _best_filters(here, there, side, conv.padding_mode, constant)
            for here, there in zip(maps.split(some, 1), wanted.split(some, 1), strict=True)
        ]
    )
    cheap.weight.copy_(best[:, : side**2].view_as(cheap.weight))
    if cheap.bias is not None:
        cheap.bias.copy_(best[:, -1])
    gap = (task.y - _places(ghost, task.x)).mean((0, 2, 3), dtype=torch.float64)
    return gap if task.free else torch.zeros_like(gap)


def _best_filters(
    maps: torch.Tensor, wanted: torch.Tensor, side: int, mode: str, constant: bool
) -> torch.Tensor:
    """(n * copies, t) for (N, n, H, W) maps and the (N, n, copies, H, W) that they shall give."""
    terms = [flat.double() for flat in shifted(maps, side, mode, CHEAP_PIXELS)]
    if constant:
        terms.append(torch.ones_like(terms[0]))
    seen = torch.stack(terms, dim=1)  # (m, t, pixels)
    wanted = wanted.permute(1, 2, 0, 3, 4).flatten(2)[:, :, :: every(maps, CHEAP_PIXELS)].double()
    own = seen @ seen.transpose(1, 2) / seen.shape[2]
    cross = seen @ wanted.transpose(1, 2) / seen.shape[2]
    return solve(own, cross).transpose(1, 2).flatten(0, 1)


def _places(ghost: GhostConv2d, x: torch.Tensor) -> torch.Tensor:
    primary = ghost.primary_conv(x)
    return torch.cat((primary, ghost.ghosts(primary)), dim=1)


def _sum(task: Task, maps: torch.Tensor) -> torch.Tensor:
    """Mean square of each wanted map, added up."""
    return (maps.double().square().mean((0, 2, 3)) * task.wanted).sum()


def _measure(ghost: GhostConv2d, task: Task, shift: torch.Tensor, energy: torch.Tensor) -> Fitted:
    gap = task.y - _places(ghost, task.x) - shift.to(task.y)[:, None, None]
    return Fitted(shift, float(_sum(task, gap) / energy))
