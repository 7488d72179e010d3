"""A norm for pooled feature maps, which may hold a single value per channel."""

from collections.abc import Callable
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn


@torch.fx.wrap  # control flow depends on sizes
def _batch_norm(
    x: torch.Tensor,
    mean: Optional[torch.Tensor],  # noqa: UP045  TorchScript of torch 2.1 knows no other
    var: Optional[torch.Tensor],  # noqa: UP045
    weight: Optional[torch.Tensor],  # noqa: UP045
    bias: Optional[torch.Tensor],  # noqa: UP045
    counter: Optional[torch.Tensor],  # noqa: UP045
    training: bool,
    tracked: bool,
    momentum: Optional[float],  # noqa: UP045
    eps: float,
) -> torch.Tensor:
    """Batch norm as ``nn.BatchNorm2d`` computes it, except for one value per channel.

    Args:
        x: (N, C, H, W).
        mean, var: Running statistics, (C,) each, or None.
        weight, bias: (C,) each, or None.
        counter: Number of batches so far, updated in place, or None.
        training, tracked, momentum, eps: The attributes of ``nn.BatchNorm2d`` at this call.
            Momentum None averages over all batches.

    Returns:
        (N, C, H, W), by the running statistics where a batch has one value per channel.
    """
    updates = training and tracked
    if updates and mean is not None and x.shape[0] * x.shape[2] * x.shape[3] <= 1:
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    share = 0.0 if momentum is None else momentum
    if updates and counter is not None:
        counter.add_(1)
        if momentum is None:
            share = 1.0 / float(counter)
    by_batch = training or (mean is None and var is None)
    if training and not tracked:
        mean, var = None, None
    return F.batch_norm(x, mean, var, weight, bias, by_batch, share, eps)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that uses its running statistics where a batch has only one value.

    One image pooled to one pixel has no variance, and torch refuses to train on it.

    Shape:
        (N, C, H, W) -> (N, C, H, W)
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.num_batches_tracked,
            self.training,
            self.track_running_stats,
            self.momentum,
            self.eps,
        )


def pooled_norm(norm_layer: Callable[[int], nn.Module], channels: int) -> nn.Module:
    """The norm of ``norm_layer``; a plain batch norm becomes :class:`PooledBatchNorm2d`.

    Args:
        norm_layer: Called with the number of channels.
        channels: Number of channels.
    """
    norm = norm_layer(channels)
    if type(norm) is nn.BatchNorm2d:
        norm.__class__ = PooledBatchNorm2d  # keeps all that the caller has set on it
    return norm
