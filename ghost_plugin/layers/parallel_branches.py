"""Sums of parallel convs with norms, and a form that trains them in fewer passes.

A batch norm is a scale and a shift once mean and variance are known, so a sum of normalised convs
is one conv with one kernel. Only the means and variances of the branches are needed. Those of a
1x1 depthwise conv, and of the input itself, follow from the input's; those of a 1x1 conv follow
from the input's covariance. One conv remains instead of five normalised feature maps to write, read
and add. Values and gradients are those of the plain sum.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..utils.torch_compat import has_autocast, is_compiling
from .bn_folding import Foldable, has_hooks_or_parametrization
from .common import same_padding

NUM_BRANCHES = 3  # parallel convs of full size
MIN_JOINT_VALUES = 1024  # values per channel from which the joint sum measured faster, on CPU

Norm = Callable[[int], nn.Module]


class Branch(Foldable):
    """A conv without bias that keeps height and width up to the stride, and its norm.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    folds = (('conv', 'bn1'),)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        norm_layer: Norm,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        padding = same_padding(kernel_size, dilation)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False
        )
        self.bn1 = norm_layer(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn1(self.conv(x))


class Branches(nn.Sequential):
    """The sum of equal branches on one input.

    Args:
        args, kwargs: As :class:`Branch`.

    Shape:
        As each branch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*(Branch(*args, **kwargs) for _ in range(NUM_BRANCHES)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            if joinable(x, self):
                return joint_sum(x, self)
        return self[0](x) + self[1](x) + self[2](x)


def joinable(
    x: torch.Tensor, convs: Branches, pixel: Branch | None = None, skip: nn.Module | None = None
) -> bool:
    """True if :func:`joint_sum` equals the plain sum and is faster.

    It is equal for equal batch norms in training. It is faster for large feature maps, for
    depthwise convs and for 1x1 convs on few channels. Tracers and compilers get the plain sum.

    Args:
        x, convs, pixel, skip: As :func:`joint_sum`.
    """
    parts: list[Any] = [*convs]
    conv = parts[0].conv
    pays = conv.groups > 1 or (
        conv.kernel_size == (1, 1) and conv.in_channels <= NUM_BRANCHES * conv.out_channels
    )
    tracing = not isinstance(x, torch.Tensor) or is_compiling()
    if tracing or not pays or _values(x, conv) < MIN_JOINT_VALUES:
        return False
    norms = _norms(convs, pixel, skip)
    branches = parts if pixel is None else [*parts, pixel]
    called = [convs, *norms, *branches, *(branch.conv for branch in branches)]
    return (
        all(type(norm) is nn.BatchNorm2d and norm.training for norm in norms)
        and all(norm.affine and norm.track_running_stats for norm in norms)
        and len({(norm.eps, norm.momentum) for norm in norms}) == 1
        and norms[0].momentum is not None
        and all(_keeps_size(branch.conv, conv.stride) for branch in branches)
        and len({branch.conv.dilation for branch in parts}) == 1
        and not any(has_hooks_or_parametrization(module) for module in called)
    )


def _keeps_size(conv: Any, stride: tuple[int, ...]) -> bool:
    """True if a plain conv has zero padding that keeps the size up to the given stride.

    It is checked at each call, as users change strides and dilations of finished networks.
    """
    kept = type(conv) is nn.Conv2d and conv.padding_mode == 'zeros' and conv.stride == stride
    same = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return kept and conv.padding == same


def joint_sum(
    x: torch.Tensor,
    convs: Branches,
    pixel: Branch | None = None,
    skip: nn.Module | None = None,
    copies: int = 1,
) -> torch.Tensor:
    """Sum of branches, in training, as one conv; running statistics follow as in the plain sum.

    Args:
        x: Input of all branches, (N, in_channels, H, W).
        convs: The branches with the full kernel size.
        pixel: A depthwise branch with a 1x1 kernel.
        skip: A norm of the input itself; its channel ``o // copies`` goes into output ``o``.
        copies: Output channels per input channel where the branches are depthwise.
    """
    parts: list[Any] = [*convs]
    conv = parts[0].conv
    kernels = [branch.conv.weight for branch in parts]
    mean, var = _moments(x, conv, torch.stack(kernels))
    if pixel is not None:
        seen = x[:, :, :: conv.stride[0], :: conv.stride[1]]
        own_mean, own_var = (v.repeat_interleave(copies) for v in _Moments.apply(seen))
        weight = pixel.conv.weight.flatten()
        means, variances = [*mean, weight * own_mean], [*var, weight.square() * own_var]
        kernels.append(_centred(pixel.conv.weight, conv))
        if skip is not None:
            means, variances = [*means, own_mean], [*variances, own_var]
            kernels.append(_centred(torch.ones_like(pixel.conv.weight), conv))
        mean, var = torch.stack(means), torch.stack(variances)
    norms = _norms(convs, pixel, skip)
    _track(norms, mean, var, _values(x, conv))
    scale = torch.stack([norm.weight for norm in norms]) * (var + norms[0].eps).rsqrt()
    bias = (torch.stack([norm.bias for norm in norms]) - mean * scale).sum(0)
    kernel = (torch.stack(kernels) * scale[:, :, None, None, None]).sum(0)
    return F.conv2d(x, kernel, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _norms(convs: Branches, pixel: Branch | None, skip: nn.Module | None) -> list[Any]:
    norms: list[Any] = [branch.bn1 for branch in convs]
    return norms + [norm for norm in (pixel and pixel.bn1, skip) if norm is not None]


def _values(x: torch.Tensor, conv: nn.Conv2d) -> int:
    """Values per channel in the output of ``conv``."""
    rows, columns = (-(-size // step) for size, step in zip(x.shape[2:], conv.stride, strict=True))
    return x.shape[0] * rows * columns


def _centred(weight: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """A 1x1 kernel with zeros around it, of the size of the kernel of ``conv``."""
    rows, columns = (size // 2 for size in conv.kernel_size)
    return F.pad(weight, (columns, columns, rows, rows))


def _moments(
    x: torch.Tensor, conv: nn.Conv2d, kernels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance, (B, C) each, of convs like ``conv`` with (B, C, ...) kernels."""
    if conv.groups > 1:  # depthwise convs wider than their input have no fast form
        options: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        each = [_Moments.apply(F.conv2d(x, kernel, None, *options)) for kernel in kernels]
        mean, var = zip(*each, strict=True)
        return torch.stack(mean), torch.stack(var)
    return _from_covariance(x[:, :, :: conv.stride[0], :: conv.stride[1]], kernels.flatten(2))


def _from_covariance(x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of 1x1 convs; weights (B, C, in_channels)."""
    pixels = x.movedim(1, -1).flatten(0, 2)
    device = x.device.type
    with torch.autocast(device, enabled=False) if has_autocast(device) else nullcontext():
        pixels = pixels.to(torch.promote_types(pixels.dtype, weights.dtype))
        mean = pixels.mean(0)
        centred = pixels - mean
        covariance = centred.T @ centred / len(pixels)
        return weights @ mean, ((weights @ covariance) * weights).sum(2).clamp_min(0)


@torch.no_grad()
def _track(norms: list[Any], mean: torch.Tensor, var: torch.Tensor, values: int) -> None:
    """Update the running statistics as the norms themselves would."""
    momentum, unbiased = norms[0].momentum, var * (values / (values - 1))
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    torch._foreach_lerp_([norm.running_mean for norm in norms], list(mean), momentum)
    torch._foreach_lerp_([norm.running_var for norm in norms], list(unbiased), momentum)


class _Moments(torch.autograd.Function):
    """Mean and variance of each channel, (N, C, H, W) -> (C,), (C,), in one pass each way."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.float if x.dtype in (torch.bfloat16, torch.half) else x.dtype
        unused = x.new_zeros(2, x.shape[1], dtype=wide)
        mean, var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_mean: torch.Tensor, to_var: torch.Tensor) -> torch.Tensor:
        x, mean = ctx.saved_tensors
        values = x.numel() // x.shape[1]
        # An evaluated batch norm of variance 1 is the fused (x - mean) * weight + bias.
        half = torch.full_like(mean, 0.5)
        return F.batch_norm(x, mean, half, 2 / values * to_var, to_mean / values, eps=0.5)
