"""Ghost convs with the norm behind them folded in, as far as that is exact."""

import copy

import torch
from torch import nn

from ..layers.bn_folding import leftover_module, noise, scale_and_shift
from ..layers.ghost import Ghost, GhostConv2d, GhostLayout
from ..layers.permutation import Permuted

# Primary channels whose scale is below this share of the largest keep it as a separate step,
# because the cheap kernels would have to be divided by it.
_MIN_SCALE_SHARE = 1e-3


class FoldedGhostConv2d(Ghost, Permuted):
    """A Ghost conv and its norm, with a step on the primary channels where one is left.

    The scale of the ghosts goes into the cheap kernels. The scale of the primary channels goes into
    the primary kernels and out of the cheap ones. Their shift cannot go that way: the cheap kernels
    see zeros at the border, where they would have to see the shift. It is added behind, unless the
    cheap kernels have no padding.

    Args:
        ghost: The Ghost conv, not changed.
        scale, shift: Scale and shift of the norm, (out_channels,) each.

    Shape:
        As the Ghost conv.
    """

    def __init__(self, ghost: GhostConv2d, scale: torch.Tensor, shift: torch.Tensor) -> None:
        primary = copy.deepcopy(ghost.primary_conv)
        groups = ghost.num_ghosted, ghost.group_size, ghost.ghosts_per_group
        super().__init__(ghost.out_channels, GhostLayout(primary.out_channels, *groups))
        self.in_channels, self.groups, self.needs_crop = (
            ghost.in_channels,
            ghost.groups,
            ghost.needs_crop,
        )
        self.primary_conv = primary
        self.cheap_operation = copy.deepcopy(ghost.cheap_operation)
        self.order = ghost.order
        left, shift = self._fold(*_per_computed_channel(ghost, scale, shift))
        # Parameters (primary, 1, 1) of the step, or None.
        self.scale = _step(left, primary.weight) if (left != 1).any() else None
        self.shift = _step(shift, primary.weight) if (shift != 0).any() else None
        self.train(ghost.training)

    @torch.no_grad()
    def _fold(self, scale: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fold as much as possible; returns the remaining scale and shift of primary channels."""
        number = self.primary_conv.out_channels
        own, ghosts = scale[:number], scale[number:]
        if not self.ghosts_per_group:
            _scale(self.primary_conv, own[:, None], shift)
            return torch.ones_like(own), torch.zeros_like(own)
        taken = torch.where(
            own.abs() > _MIN_SCALE_SHARE * own.abs().max(), own, torch.ones_like(own)
        )
        left, moved = own / taken, shift[:number].clone()
        inner = torch.where(left == 1, moved, torch.zeros_like(moved))
        if self.cheap_operation.padding_mode == 'zeros' and any(self.cheap_operation.padding):
            inner.zero_()
        _scale(self.primary_conv, taken[:, None], inner)
        # (ghosts, group size): values of the primary channels that each ghost mixes.
        taken, seen = (
            values[: self.num_ghosted]
            .view(-1, self.group_size)
            .repeat_interleave(self.ghosts_per_group, 0)
            for values in (taken, inner)
        )
        factors = ghosts[:, None] / taken
        sums = self.cheap_operation.weight.double().sum((2, 3))
        bias = shift[number:] - (factors * sums * seen).sum(1)
        _scale(self.cheap_operation, factors, bias, bias_scale=ghosts)
        return left, moved - inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.primary_conv(x)
        if self.ghosts_per_group == 0:
            out = primary
        else:
            ghosts = self.ghosts(primary)
            if self.scale is not None:
                primary = primary * self.scale
            if self.shift is not None:
                primary = primary + self.shift
            out = self.concat(primary, ghosts)
        return self.permute(out)

    def extra_repr(self) -> str:
        steps = [name for name in ('scale', 'shift') if getattr(self, name) is not None]
        return f'{self.in_channels}, {self.out_channels}, steps={steps}'


def foldable_ghost(ghost: nn.Module) -> bool:
    """True if a norm behind this Ghost conv can be folded: its ghosts must have kernels."""
    if type(ghost) is not GhostConv2d:
        return False
    return not ghost.ghosts_per_group or isinstance(ghost.cheap_operation, nn.Conv2d)


def fold_ghost(ghost: GhostConv2d, norm: nn.Module) -> tuple[FoldedGhostConv2d, nn.Module, float]:
    """Fold a norm into a Ghost conv; neither is changed.

    Args:
        ghost: Passes :func:`foldable_ghost`.
        norm: The norm behind it, in eval mode.

    Returns:
        The folded conv, the module that replaces the norm, the largest difference on noise.
    """
    folded = FoldedGhostConv2d(ghost, *scale_and_shift(norm))
    rest = leftover_module(norm)
    x = noise(ghost.primary_conv, *([ghost.cheap_operation] if ghost.ghosts_per_group else []))
    with torch.no_grad():
        difference = (norm(ghost(x)) - rest(folded(x))).abs().max().item()
    return folded, rest, difference


def _per_computed_channel(
    ghost: GhostConv2d, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of every computed channel; cropped ones keep 1 and 0."""
    order = torch.arange(ghost.out_channels) if ghost.order is None else ghost.order
    every_scale, every_shift = (
        scale.new_ones(ghost.num_computed()),
        shift.new_zeros(ghost.num_computed()),
    )
    every_scale[order], every_shift[order] = scale, shift
    return every_scale, every_shift


def _step(values: torch.Tensor, like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(values[:, None, None].to(like), requires_grad=like.requires_grad)


def _scale(
    conv: nn.Conv2d,
    scale: torch.Tensor,
    shift: torch.Tensor,
    bias_scale: torch.Tensor | None = None,
) -> None:
    """Scale the kernels and the bias of a conv, then add a shift to the bias; in place.

    Args:
        conv: The conv.
        scale: (out_channels, 1), or one column per input channel of a kernel.
        shift: (out_channels,).
        bias_scale: (out_channels,); ``scale`` without it.
    """
    bias = shift
    if conv.bias is not None:
        bias = shift + conv.bias.double() * (scale[:, 0] if bias_scale is None else bias_scale)
    conv.weight.copy_(conv.weight.double() * scale[:, :, None, None])
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
