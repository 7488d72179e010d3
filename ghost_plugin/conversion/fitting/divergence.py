"""Divergence: how far a converted network's outputs are from the original's.

For a classifier it is the mean Kullback-Leibler divergence of its predictions from the original's,
in nats. For all other outputs, such as feature maps, class scores and boxes of detectors, it is the
squared error relative to the variance.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...utils.modules import as_copies, eval_mode, tensors_in
from .batches import concat_batches


def outputs(model: nn.Module, batch: Any) -> list[torch.Tensor]:
    """Floating tensors among a model's outputs, in order.

    Args:
        model: Called with a copy of the batch.
        batch: A tensor, a tuple of arguments or a mapping of keyword arguments.
    """
    args, kwargs = as_copies(batch)
    return [leaf for leaf in tensors_in(model(*args, **kwargs)) if leaf.is_floating_point()]


def divergence(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Divergence of a batch.

    Args:
        found: Floating tensors (N, ...).
        wanted: Those of the original, of the same shapes; (N, C) are logits.

    Returns:
        (N,) of each image, mean over tensors.
    """
    each = []
    for mine, theirs in zip(found, wanted, strict=True):
        if theirs.ndim == 2 and theirs.shape[1] > 1:
            mine, theirs = mine.log_softmax(1), theirs.log_softmax(1)
            each.append(F.kl_div(mine, theirs, reduction='none', log_target=True).sum(1))
        else:
            gap = (mine - theirs).square().flatten(1).mean(1)
            each.append(gap / theirs.var().clamp_min(1e-12))
    return torch.stack(each).mean(0)


@torch.no_grad()
def has_divergence(model: nn.Module, image: Any) -> bool:
    """Say if a model gives tensors with one entry for each image, unlike lists of detections.

    Args:
        model: It runs once.
        image: A batch of one image.
    """
    pair = concat_batches([image, image])
    if pair is None:
        return False
    with eval_mode(model):
        found = outputs(model, pair)
    return bool(found) and all(leaf.ndim > 1 and len(leaf) == 2 for leaf in found)
