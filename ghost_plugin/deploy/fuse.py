"""Branches merged and norms folded: the same network with fewer steps."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..analysis import call, evaluating
from ..layers.folding import check_inference, fold


def fuse(model: nn.Module, example_input: Any = None) -> nn.Module:
    """A copy for inference in which every branch is merged and every norm folded into its conv.

    Args:
        model: In eval mode; it is left as it is. Norms fold where a block of this package or the
            order of an ``nn.Sequential`` says which conv they follow.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments. With it
            the outputs of both models are compared; without it each part is, on noise.

    Returns:
        The copy. Its attribute ``folding`` tells what was done and the largest difference that
        was found (:class:`ghost_plugin.layers.folding.Folding`). Weights keep dtype, memory format
        and ``requires_grad``.

    Raises:
        ValueError: A part of the model is in training mode, or its branches end in norms that
            cannot be folded.
    """
    check_inference(model)
    fused = copy.deepcopy(model)
    report = fold(fused)
    if example_input is not None:
        report = replace(report, max_abs_diff=_difference(model, fused, example_input))
    fused.folding = report
    return fused


def _difference(before: nn.Module, after: nn.Module, example_input: Any) -> float:
    with evaluating(before), evaluating(after):
        pairs = zip(
            pytree.tree_leaves(call(before, example_input)),
            pytree.tree_leaves(call(after, example_input)),
            strict=True,
        )
        return max((a - b).abs().max().item() for a, b in pairs if isinstance(a, torch.Tensor))
