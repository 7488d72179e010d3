"""Norms folded into the convs in front of them, for inference.

A class declares in ``folds`` which of its norms follow which conv directly, as pairs of names; in
``nn.Sequential`` the order declares it. A class with parallel branches has ``branched``,
``merge_branches`` and, in ``merged_names``, the names of the branches that are merged.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..utils.torch_compat import full_precision
from .common import check_module
from .norm import PooledBatchNorm2d

# Exact types: subclasses may do more than scale and shift.
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, PooledBatchNorm2d)
# Norms of other libraries, by package and name; those with "Act" leave their ``act`` behind.
_FOREIGN = {
    ('mmengine', 'SyncBatchNorm'),
    ('timm', 'BatchNormAct2d'),
    ('timm', 'FrozenBatchNorm2d'),
    ('timm', 'FrozenBatchNormAct2d'),
    ('torchvision', 'FrozenBatchNorm2d'),
}
# Subclasses that differ from nn.Conv2d only in their padding or for empty inputs.
_PLAIN = ('Conv2d', 'Conv2dSame', 'Conv2dAdaptivePadding')
# Advice of error messages about hooks and computed weights.
PERMANENT = (
    'make that permanent first (prune.remove, remove_weight_norm, remove_spectral_norm, '
    'parametrize.remove_parametrizations, or remove() of a hook)'
)


@dataclass(frozen=True)
class Folding:
    """Report of what was folded.

    Attributes:
        merged: Number of modules whose parallel branches became one conv each.
        folded: Number of norms that went into a conv or a Ghost conv.
        max_abs_diff: Largest difference of an output, before against after, over all modules, each
            on normal noise.
        steps: Folded norms of Ghost convs whose primary channels keep a scale or shift.
        orders: Channel permutations of Ghost convs that went into their neighbours.
        left: Names of norms that stay: because no conv that could take them stands before them,
            because something else runs one of the two as well, or because one has hooks or computed
            weights (masks of ``torch.nn.utils.prune``, weight norm, parametrizations).
    """

    merged: int
    folded: int
    max_abs_diff: float
    steps: int = 0
    orders: int = 0
    left: tuple[str, ...] = ()


class Foldable(nn.Module):
    """Mixed into a block or a network, adds the methods that deployment tools call.

    ``switch_to_deploy`` is the usual name, ``reparameterize`` is timm's.
    """

    folds: tuple[tuple[str, str], ...] = ()

    @torch.jit.ignore
    def switch_to_deploy(self) -> Folding:
        """Merge branches and fold norms in place; a second call changes nothing.

        Raises:
            ValueError: Some module is in training mode, where norms follow each batch, or branches
                cannot be merged.
        """
        return fold(self)

    @torch.jit.ignore
    def reparameterize(self) -> Folding:
        """:meth:`switch_to_deploy` in any mode, as ``timm.utils.reparameterize_model`` calls it.

        Norms are folded as they are in eval mode. Every module keeps its own mode; new ones get
        that of this module.
        """
        mode = self.training
        training = {module: module.training for module in self.modules()}
        for module in training:
            module.training = False
        try:
            return fold(self)
        finally:
            for module in self.modules():
                module.training = training.get(module, mode)


def fold(model: nn.Module) -> Folding:
    """Merge the branches and fold the norms of every module of ``model``, in place.

    Args:
        model: In eval mode. Weights keep dtype, memory format and ``requires_grad``; a new bias
            requires a gradient where the norm's did.

    Raises:
        ValueError: As :meth:`Foldable.switch_to_deploy`.
    """
    check_inference(model)
    merged = merge_branches(model)
    folded = fold_norms(model)
    return Folding(len(merged), len(folded), max([0.0, *merged, *folded]))


@full_precision()
def merge_branches(model: nn.Module, compare: bool = True) -> list[float]:
    """Merge the parallel branches of every module of ``model``, in place; norms behind stay.

    Args:
        model: In eval mode if outputs are compared.
        compare: Compare the outputs of each merged module before and after, on noise.

    Returns:
        Largest difference per merged module, empty without a comparison.

    Raises:
        ValueError: Branches cannot be merged; nothing is changed then.
    """
    parts: list[tuple[str, Any]] = [
        (name, part) for name, part in model.named_modules() if getattr(part, 'branched', False)
    ]
    for name, part in parts:
        _check_norms(part)
        _check_altered(name, part)
    if compare:
        return [_merge_and_compare(part) for _, part in parts]
    for _, part in parts:
        part.merge_branches()
    return []


@full_precision()
def fold_norms(
    model: nn.Module, neighbours: Mapping[nn.Module, nn.Module | None] | None = None
) -> list[float]:
    """Fold the norms that the classes of ``model`` declare, in place.

    Args:
        model: In eval mode, branches merged.
        neighbours: Only consumer of each conv and only producer of each norm
            (:func:`ghost_plugin.graph.symbolic_trace.conv_norm_neighbours`), as far as known; for
            other layers the declaration of their class counts.

    Returns:
        Largest difference of an output on noise, per folded norm.
    """
    neighbours = neighbours or {}
    # A module with two parents would be changed in one of them only.
    parents = Counter(m for part in model.modules() for m in part._modules.values())

    folded = []
    for part in list(model.modules()):
        for names in _pairs(part):
            conv, norm = (getattr(part, name) for name in names)
            adjacent = neighbours.get(conv, norm) is norm and neighbours.get(norm, conv) is conv
            if foldable(conv, norm) and adjacent and parents[conv] <= 1 and parents[norm] <= 1:
                folded.append(fold_pair(part, *names))
    return folded


def check_inference(model: nn.Module) -> None:
    """Raise when a module that inference treats differently is in training mode.

    Raises:
        TypeError: Not a module.
        ValueError: In training mode.
    """
    check_module(model)
    training = [name for name, part in model.named_modules() if part.training]
    if training:
        raise ValueError(
            f'cannot fold a model in training mode ({len(training)} parts, such as '
            f'{training[0] or type(model).__name__!r}, train); call model.eval() first'
        )


def _check_norms(part: nn.Module) -> None:
    """Raise if the norms of the branches of ``part`` cannot be folded."""
    for branch in part.modules():
        for conv_name, norm_name in getattr(branch, 'folds', ()):
            conv, norm = getattr(branch, conv_name), getattr(branch, norm_name)
            if isinstance(norm, nn.Identity):
                continue
            if not is_standard_conv(conv):
                raise ValueError(
                    f'branches with a {type(conv).__name__} cannot be merged; merge them first '
                    '(gp.fuse) and convert the result'
                )
            if not (is_affine_norm(norm) and isinstance(leftover_module(norm), nn.Identity)):
                raise ValueError(
                    f'branches behind {type(norm).__name__} cannot be merged, only those behind '
                    'a BatchNorm with running statistics'
                )


def _check_altered(place: str, part: nn.Module) -> None:
    """Raise if a branch of ``part`` computes more than its weights declare."""
    for group in (group for _, *groups in getattr(part, 'merged_names', ()) for group in groups):
        branch = getattr(part, group, None)
        for name, module in () if branch is None else branch.named_modules(prefix=group):
            if has_hooks_or_parametrization(module):
                raise ValueError(
                    f'the branches of {place or type(part).__name__!r} cannot be merged: {name!r} '
                    f'has hooks or a computed weight; {PERMANENT}'
                )


def _origin(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__.split('.')[0], type(module).__name__


def is_standard_conv(conv: nn.Module) -> bool:
    """True if a conv computes with its weight what ``nn.Conv2d`` computes."""
    package, name = _origin(conv)
    return type(conv) is nn.Conv2d or (package in ('timm', 'mmcv') and name in _PLAIN)


def is_affine_norm(norm: nn.Module) -> bool:
    """True if a norm in eval mode is a fixed scale and shift, apart from an activation behind."""
    known = type(norm) in _NORMS or _origin(norm) in _FOREIGN
    return known and norm.running_mean is not None


def has_hooks_or_parametrization(module: nn.Module) -> bool:
    """True if a call computes more than the layer's class and parameters define.

    Masks of ``torch.nn.utils.prune``, weight norm and spectral norm are hooks that write the weight
    at each call; where there is no hook, a weight that is not a parameter shows them.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or is_parametrized(module)
    return bool(hooked or {'forward', 'weight', 'bias'} & vars(module).keys())


def foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """True if ``norm`` is a fixed scale and shift of the output of ``conv``.

    Args:
        conv, norm: A layer and the one behind it.
    """
    return (
        is_standard_conv(conv)
        and is_affine_norm(norm)
        and not (has_hooks_or_parametrization(conv) or has_hooks_or_parametrization(norm))
    )


def leftover_module(norm: nn.Module) -> nn.Module:
    """The module that replaces a folded norm: its activation, or an identity."""
    act = getattr(norm, 'act', None)
    return nn.Identity().train(norm.training) if act is None else act


def kernel_and_bias(conv: nn.Conv2d, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, in float64, of one conv that computes ``norm(conv(x))``.

    Args:
        conv: A standard conv.
        norm: A norm in eval mode.

    Returns:
        (out_channels, in_channels / groups, kH, kW) and (out_channels,).
    """
    scale, shift = scale_and_shift(norm)
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    return weight, shift if conv.bias is None else shift + conv.bias.detach().double() * scale


def scale_and_shift(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A norm in eval mode as x * scale + shift, (C,) each, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.weight is not None:
        weight = norm.weight.detach().double()
        scale, shift = scale * weight, shift * weight + norm.bias.detach().double()
    return scale, shift


def with_weights(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """A copy of ``conv`` with another weight and a bias; dtype and flags stay.

    Args:
        conv: The conv to copy.
        weight: As the weight of ``conv``, any floating type.
        bias: (out_channels,), any floating type.
    """
    new = copy.deepcopy(conv)
    new.weight.data.copy_(weight)
    new.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
    return new


def _pairs(part: nn.Module) -> Iterator[tuple[str, str]]:
    yield from getattr(part, 'folds', ())
    if getattr(type(part), 'forward', None) is nn.Sequential.forward:
        yield from itertools.pairwise(part._modules)  # also those of a layer that is there twice


def fold_pair(part: nn.Module, conv: str, norm: str) -> float:
    """Fold one norm of ``part``, in place.

    Args:
        part: Parent of both.
        conv, norm: Names of its children.

    Returns:
        Largest difference of an output, on noise.
    """
    before, behind = getattr(part, conv), getattr(part, norm)
    after: Any = with_weights(before, *kernel_and_bias(before, behind))
    after.bias.requires_grad_(any(p.requires_grad for p in behind.parameters()))
    setattr(part, conv, after)
    rest = leftover_module(behind)
    setattr(part, norm, rest)
    x = noise(after)
    with torch.no_grad():
        return (behind(before(x)) - rest(after(x))).abs().max().item()


def _merge_and_compare(part: Any) -> float:
    # The conv knows its channels, also after pruning.
    first = next(module for module in part.modules() if isinstance(module, nn.Conv2d))
    x = noise(first)
    with torch.no_grad():
        before = part(x)
        part.merge_branches()
        part.eval()  # for new modules
        return (before - part(x)).abs().max().item()


def noise(*convs: nn.Conv2d) -> torch.Tensor:
    """One image of normal noise, the same in each call, for consecutive convs.

    Returns:
        (1, in_channels, size, size) with a size that all kernels and paddings allow, at least 9.
    """
    size = 1
    for conv in reversed(convs):
        # The attribute that nn.Conv2d itself reads; the other one may be out of date.
        zeros = conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)
        pads: Any = conv.padding if zeros else conv._reversed_padding_repeated_twice
        axes = zip(conv.stride, conv.dilation, conv.kernel_size, strict=True)
        needed = max((size - 1) * step + (kernel - 1) * gap + 1 for step, gap, kernel in axes)
        size = max(needed - 2 * min(pads), 1 if conv.padding_mode == 'zeros' else max(pads) + 1)
    size = max(size, 9)
    generator = torch.Generator().manual_seed(0)
    first = convs[0]
    return torch.randn(1, first.in_channels, size, size, generator=generator).to(first.weight)
