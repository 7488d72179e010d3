"""Branches merged, norms folded, orders moved: the same network with fewer steps."""

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
from ..utils.modules import call_model, deepcopy_detached, eval_mode, plain_forward
from .comparison import Difference, differences

# Share of the largest output that float32 seldom loses; beyond it float64 is asked.
_GROSS = 0.01
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_INSTEAD = (
    'set it to None while the model is copied, give its class a __deepcopy__, or leave fuse out '
    '(gp.export(..., fused=False) copies nothing)'
)
_DROP_NAMES = {'DropPath', 'DropBlock', 'DropBlock2d', 'StochasticDepth'}  # every library's own


@plain_forward()
def fuse(model: nn.Module, example_input: Any = None) -> nn.Module:
    """A copy for inference in which every branch is merged and every norm folded into its conv.

    Works on anything: our backbones, converted models, detectors of OpenMMLab. Which conv a norm
    follows is told by the blocks of this package, by ``nn.Sequential``, and else found by following
    the network symbolically, or those of its parts that can be followed. A norm behind a Ghost conv
    goes into its kernels as far as that is exact
    (:class:`ghost_plugin.graph.folded_ghost.FoldedGhostConv2d`).
    A stored order goes into all that read
    and write the same maps, where these could be followed; of several orders that a shortcut adds
    one goes, and the others stay. Dropout and drop path go. Layers with hooks or with weights that
    are computed (masks of ``torch.nn.utils.prune``, weight norm, parametrizations) stay.

    Args:
        model: In eval mode; it is left as it is.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments. With it
            the outputs of both models are compared, in float64 if they differ by more than a
            hundredth of the largest; without it each part is, on noise.

    Returns:
        The copy. Its attribute ``folding`` tells what was done, what stays and the largest
        difference that was found (:class:`ghost_plugin.layers.bn_folding.Folding`). Weights keep
        dtype, memory format and ``requires_grad``. Fused again, nothing changes.

    Raises:
        ValueError: A part of the model is in training mode, its branches end in norms that cannot
            be folded or have hooks or computed weights, it holds something that cannot be copied
            (the error names it), or the copy gives something else for ``example_input``.
    """
    fused = _fused(model)
    if example_input is not None:
        found = _difference(model, fused, example_input)
        if found.relative > _limit(model) and not _rounds(model, example_input):
            raise ValueError(
                f'fused, {type(model).__name__} gives something else: outputs differ by '
                f'{found.relative:.1%} of the largest ({found.absolute:.3g}), and not by rounding. '
                'It runs its layers in a way that could not be followed; fuse only parts of it '
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
    report = _fold_behind(fused, norms_behind(parts), report)
    parts = with_current_modules(parts, fused)
    report = replace(report, orders=absorb_permutations(fused, parts))
    left = tuple(name for name, module in fused.named_modules() if is_affine_norm(module))
    fused.folding = replace(report, left=left)
    return fused


def _fold_behind(model: nn.Module, pairs: list[tuple[str, str]], report: Folding) -> Folding:
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
            if type(child) in _DROPS or type(child).__name__ in _DROP_NAMES:
                gone = nn.Identity().eval()
                # Some networks read the rate of the layer, for a function.
                vars(gone).update({k: v for k, v in vars(child).items() if isinstance(v, float)})
                setattr(parent, name, gone)


def _difference(before: nn.Module, after: nn.Module, example_input: Any) -> Difference:
    with eval_mode(before), eval_mode(after):
        pair = call_model(before, example_input), call_model(after, example_input)
    return differences(*pair)


def _limit(model: nn.Module) -> float:
    """A difference that no fault need explain, as a share of the largest output."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max([_GROSS, *(16 * torch.finfo(dtype).eps for dtype in types)])


def _rounds(model: nn.Module, example_input: Any) -> bool:
    """Whether it is rounding that two runs differ by: in float64 they do not, or each two do."""
    if _difference(model, model, example_input).relative > _GROSS:
        return True  # it draws its outputs anew each time
    wide = pytree.tree_map(_double, example_input)
    try:
        exact = deepcopy_detached(model, share=True).double()
        return _difference(exact, _fused(exact), wide).relative <= _GROSS
    except Exception:  # some networks know no float64
        return False


def _double(value: Any) -> Any:
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value
