"""A norm for pooled maps, which may hold a single value per channel."""

from collections.abc import Callable
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn


@torch.fx.wrap  # it looks at sizes, which a symbolic trace cannot
def _normed(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: Optional[torch.Tensor],  # noqa: UP045  TorchScript of torch 2.1 knows no other
    bias: Optional[torch.Tensor],  # noqa: UP045
    counter: torch.Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Batch norm; in training by the batch where it has more than one value per channel."""
    batch = training and x.shape[0] * x.shape[2] * x.shape[3] > 1
    if batch:
        counter.add_(1)
    return F.batch_norm(x, mean, var, weight, bias, batch, momentum, eps)


class PooledBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that takes its running statistics where a batch has only one value.

    One picture pooled to one pixel has no variance, and torch refuses to train on it.

    Shape:
        (N, C, H, W) -> (N, C, H, W)
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _normed(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.num_batches_tracked,
            self.training,
            self.momentum,
            self.eps,
        )


def pooled_norm(norm_layer: Callable[[int], nn.Module], channels: int) -> nn.Module:
    """The norm that ``norm_layer`` makes; a plain batch norm becomes :class:`PooledBatchNorm2d`."""
    norm = norm_layer(channels)
    if type(norm) is nn.BatchNorm2d and norm.track_running_stats and norm.momentum is not None:
        norm.__class__ = PooledBatchNorm2d  # keeps all that the caller has set on it
    return norm
