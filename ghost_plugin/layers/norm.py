"""A norm for pooled maps, which may hold a single value per channel."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class PooledBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that takes its running statistics where a batch has only one value.

    One picture pooled to one pixel has no variance, and torch refuses to train on it.

    Shape:
        (N, C, H, W) -> (N, C, H, W)
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = self.training and x.shape[0] * x.shape[2] * x.shape[3] > 1
        if batch:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            batch,
            self.momentum,
            self.eps,
        )


def pooled_norm(norm_layer: Callable[[int], nn.Module], channels: int) -> nn.Module:
    """The norm that ``norm_layer`` makes; a plain batch norm becomes :class:`PooledBatchNorm2d`."""
    norm = norm_layer(channels)
    if type(norm) is nn.BatchNorm2d and norm.track_running_stats and norm.momentum is not None:
        norm.__class__ = PooledBatchNorm2d  # keeps all that the caller has set on it
    return norm
