"""Divergence of a converted network on all images."""

import torch

from ghost_plugin.conversion.fitting.divergence import divergence, outputs
from ghost_plugin.utils.modules import eval_mode


@torch.no_grad()
def divergence_of_images(original, converted, batches):
    """(images,) divergence of each image, in eval mode."""
    with eval_mode(original), eval_mode(converted):
        parts = [divergence(outputs(converted, b), outputs(original, b)) for b in batches]
    return torch.cat(parts)
