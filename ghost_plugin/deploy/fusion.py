"""Merge branches, fold norms and absorb channel permutations of a network for inference."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..graph.channel_permutation import absorb_permutations
from ..graph.folded_ghost import fold_ghost, foldable_ghost
from ..graph.symbolic_trace import (
    conv_norm_neighbours,
    norms_behind,
    trace_parts,
    with_current_modules,
)
from ..layers.bn_folding import (
    Folding,
    check_inference,
    fold_norms,
    fold_pair,
    foldable,
    is_affine_norm,
    merge_branches,
)
from ..utils.modules import call_model, deepcopy_detached, eval_mode, is_dropout, plain_forward
from .comparison import Difference, differences

# Relative difference above which float64 decides between rounding and an error.
_LARGE = 0.01
_INSTEAD = (
    'set it to None while the model is copied, give its class a __deepcopy__, or leave fuse out '
    '(gp.export(..., fused=False) copies nothing)'
)


@plain_forward()
def fuse(model: nn.Module, example_input: Any = None) -> nn.Module:
    """Copy a model for inference, with branches merged and norms folded into their convs.

    Works for our backbones, converted models and detectors of OpenMMLab. The conv in front of a
    norm is known from the blocks of this package and from ``nn.Sequential``; otherwise it is found
    by symbolic tracing of the network, or of the parts that can be traced. A norm behind a Ghost
    conv is folded into its kernels as far as that is exact
    (:class:`ghost_plugin.graph.folded_ghost.FoldedGhostConv2d`). A channel permutation is absorbed
    by the layers that read and write the same channels, where these can be traced; of different
    permutations that a shortcut adds, the most common one is absorbed and the others stay. Dropout
    and drop path are removed. Layers with hooks or computed weights (masks of
    ``torch.nn.utils.prune``, weight norm, parametrizations) stay.

    Args:
        model: In eval mode; it stays unchanged.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments. With it
            the outputs of both models are compared, in float64 if they differ by more than 1 % of
            the largest; without it each part is compared on noise.

    Returns:
        The copy. Its attribute ``folding`` reports what was folded, what stays and the largest
        difference (:class:`ghost_plugin.layers.bn_folding.Folding`). Weights keep dtype, memory
        format and ``requires_grad``. Fusing the copy again changes nothing.

    Raises:
        ValueError: A part of the model is in training mode, its branches end in norms that cannot
            be folded or have hooks or computed weights, an attribute cannot be copied (the error
            names it), or the outputs of the copy differ for ``example_input``.
    """
    fused = _fused(model)
    if example_input is not None:
        found = _difference(model, fused, example_input)
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        limit = max([_LARGE, *(16 * torch.finfo(dtype).eps for dtype in dtypes)])
        if found.relative > limit and not _is_rounding(model, example_input):
            raise ValueError(
                f'fused, {type(model).__name__} computes something else: outputs differ by '
                f'{found.relative:.1%} of the largest ({found.absolute:.3g}), and not by rounding. '
                'It calls its layers in a way that could not be traced; fuse only parts of it '
                '(model.backbone = gp.fuse(model.backbone)), and please report the network'
            )
        fused.folding = replace(fused.folding, max_abs_diff=found.absolute)
    return fused


def _fused(model: nn.Module) -> nn.Module:
    check_inference(model)
    fused = deepcopy_detached(model, instead=_INSTEAD)
    _drop(fused)
    merged = merge_branches(fused)
    parts = trace_parts(fused)
    folded = fold_norms(fused, conv_norm_neighbours(parts))
    report = Folding(len(merged), len(folded), max([0.0, *merged, *folded]))
    parts = with_current_modules(parts, fused)
    report = _fold_traced(fused, norms_behind(parts), report)
    parts = with_current_modules(parts, fused)
    report = replace(report, orders=absorb_permutations(fused, parts))
    left = tuple(name for name, module in fused.named_modules() if is_affine_norm(module))
    fused.folding = replace(report, left=left)
    return fused


def _fold_traced(model: nn.Module, pairs: list[tuple[str, str]], report: Folding) -> Folding:
    """Fold the norms that follow a conv in the model's graph, in place."""
    folded, steps, worst = report.folded, report.steps, report.max_abs_diff
    for names in pairs:
        maker, norm = (model.get_submodule(name) for name in names)
        if foldable_ghost(maker):
            *new, difference = fold_ghost(maker, norm)
            for name, module in zip(names, new, strict=True):
                _put(model, name, module)
            steps += new[0].shift is not None or new[0].scale is not None
        elif foldable(maker, norm):
            difference = _fold_names(model, *names)
        else:
            continue
        folded, worst = folded + 1, max(worst, difference)
    return replace(report, folded=folded, steps=steps, max_abs_diff=worst)


def _fold_names(model: nn.Module, conv: str, norm: str) -> float:
    """:func:`fold_pair` for a conv and a norm that may have different parents."""
    pair = nn.Module()
    pair.conv, pair.norm = model.get_submodule(conv), model.get_submodule(norm)
    difference = fold_pair(pair, 'conv', 'norm')
    _put(model, conv, pair.conv)
    _put(model, norm, pair.norm)
    return difference


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)


def _drop(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_dropout(child):
                gone = nn.Identity().eval()
                # Some networks read the rate of the layer, for a function.
                vars(gone).update({k: v for k, v in vars(child).items() if isinstance(v, float)})
                setattr(parent, name, gone)


def _difference(before: nn.Module, after: nn.Module, example_input: Any) -> Difference:
    with eval_mode(before), eval_mode(after):
        pair = call_model(before, example_input), call_model(after, example_input)
    return differences(*pair)


def _is_rounding(model: nn.Module, example_input: Any) -> bool:
    """Return whether the difference is rounding: none in float64, or equal runs differ, too."""
    if _difference(model, model, example_input).relative > _LARGE:
        return True  # outputs are random
    wide = pytree.tree_map(
        lambda x: x.double() if torch.is_tensor(x) and x.is_floating_point() else x, example_input
    )
    try:
        exact = deepcopy_detached(model, share=True).double()
        return _difference(exact, _fused(exact), wide).relative <= _LARGE
    except Exception:  # some networks do not support float64
        return False
