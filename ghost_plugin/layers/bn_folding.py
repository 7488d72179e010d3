"""Norms folded into the convs in front of them, for inference.

A class says in ``folds`` which of its norms stand directly behind which conv, as pairs of names;
``nn.Sequential`` says so by its order. A class with parallel branches brings ``branched``,
``merge_branches`` and, in ``merged_names``, what these take away.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..utils.torch_compat import full_precision
from .common import check_module
from .norm import PooledBatchNorm2d

# Exact types: subclasses may do more than scale and shift.
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, PooledBatchNorm2d)
# Of other libraries, by their package and name; what "Act" stands for is left behind as ``act``.
_FOREIGN = {
    ('mmengine', 'SyncBatchNorm'),
    ('timm', 'BatchNormAct2d'),
    ('timm', 'FrozenBatchNorm2d'),
    ('timm', 'FrozenBatchNormAct2d'),
    ('torchvision', 'FrozenBatchNorm2d'),
}
# Subclasses that differ from nn.Conv2d in how they pad, or for empty input only.
_PLAIN = ('Conv2d', 'Conv2dSame', 'Conv2dAdaptivePadding')
# How hooks go, and what torch.nn.utils does to weights by them.
PERMANENT = (
    'make that permanent first (prune.remove, remove_weight_norm, remove_spectral_norm, '
    'parametrize.remove_parametrizations, or remove() of a hook)'
)


@dataclass(frozen=True)
class Folding:
    """What was folded.

    Attributes:
        merged: Parts whose parallel branches became one conv each.
        folded: Norms that went into a conv, Ghost convs among them.
        max_abs_diff: Largest difference of an output, before against after, over all parts, each
            on normal noise.
        steps: Folded norms of Ghost convs whose primary maps keep a step per channel.
        orders: Stored orders of Ghost convs that went into their neighbours.
        left: Names of norms that stay, because no conv that could take them stands before them,
            because something else runs one of the two as well, or because one has hooks or weights
            that are computed (masks of ``torch.nn.utils.prune``, weight norm, parametrizations).
    """

    merged: int
    folded: int
    max_abs_diff: float
    steps: int = 0
    orders: int = 0
    left: tuple[str, ...] = ()


class Foldable:
    """Mixed into a block or a network, gives it the names that deployment tools call.

    ``switch_to_deploy`` is the field's name for it, ``reparameterize`` is timm's.
    """

    folds: tuple[tuple[str, str], ...] = ()

    @torch.jit.ignore
    def switch_to_deploy(self) -> Folding:
        """Merge branches and fold norms in place; a second time changes nothing.

        Raises:
            ValueError: Some part is in training mode, where norms follow each batch, or branches
                cannot be merged.
        """
        return fold(self)

    @torch.jit.ignore
    def reparameterize(self) -> Folding:
        """:meth:`switch_to_deploy` in any mode, as ``timm.utils.reparameterize_model`` calls it.

        Norms are folded as they are in eval mode. Every part keeps its own mode; what is new has
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


@full_precision()
def fold(model: nn.Module, beside: Mapping[nn.Module, nn.Module | None] | None = None) -> Folding:
    """Merge the branches and fold the norms of every part of ``model``, in place.

    Weights keep dtype, memory format and ``requires_grad``; a new bias requires a gradient where
    the norm's did.

    Args:
        model: In eval mode.
        beside: Neighbours by name, of
            :func:`ghost_plugin.graph.symbolic_trace.conv_norm_neighbours`, as far as
            that is known; else the blocks' word is taken.
    """
    check_inference(model)
    beside = beside or {}
    # A layer of two places would be changed at one of them only.
    places = Counter(m for part in model.modules() for m in part._modules.values())
    for name, part in model.named_modules():
        if getattr(part, 'branched', False):
            _check_norms(part)
            _check_altered(name, part)
    merged = [_merge(part) for part in model.modules() if getattr(part, 'branched', False)]
    folded = [
        fold_pair(part, *names)
        for part in list(model.modules())
        for names in _pairs(part)
        if _alone(*(getattr(part, name) for name in names), places, beside)
    ]
    return Folding(len(merged), len(folded), max([0.0, *merged, *folded]))


def _alone(
    conv: nn.Module,
    norm: nn.Module,
    places: Counter,
    beside: Mapping[nn.Module, nn.Module | None],
) -> bool:
    """Whether ``norm`` takes all that ``conv`` gives, and nothing else."""
    known = beside.get(conv, norm) is norm and beside.get(norm, conv) is conv
    return foldable(conv, norm) and known and places[conv] <= 1 and places[norm] <= 1


@full_precision()
def merge_branches(model: nn.Module) -> None:
    """Merge the parallel branches of every part of ``model``, in place; norms behind stay."""
    for part in list(model.modules()):
        if getattr(part, 'branched', False):
            part.merge_branches()


def check_inference(model: nn.Module) -> None:
    """Raise when a part that inference treats differently is in training mode.

    Raises:
        TypeError: Not a module. ValueError: In training mode.
    """
    check_module(model)
    training = [name for name, part in model.named_modules() if part.training]
    if training:
        raise ValueError(
            f'cannot fold a model in training mode ({len(training)} parts, such as '
            f'{training[0] or type(model).__name__!r}, train); call model.eval() first'
        )


def _check_norms(part: nn.Module) -> None:
    """Raise before anything is changed when the branches of ``part`` cannot be merged."""
    for branch in part.modules():
        for conv, norm in getattr(branch, 'folds', ()):
            maker, given = getattr(branch, conv), getattr(branch, norm)
            if isinstance(given, nn.Identity):
                continue
            if not is_standard_conv(maker):
                raise ValueError(
                    f'branches with a {type(maker).__name__} cannot be merged; merge them first '
                    '(gp.fuse) and convert the result'
                )
            if not (is_affine_norm(given) and isinstance(leftover_module(given), nn.Identity)):
                raise ValueError(
                    f'branches behind {type(given).__name__} cannot be merged, only those behind '
                    'a BatchNorm with running statistics'
                )


def _check_altered(place: str, part: nn.Module) -> None:
    """Raise before anything is changed when a branch of ``part`` does more than its weights say."""
    for group in (group for _, *groups in part.merged_names for group in groups):
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
    """Whether a conv does with its weight what ``nn.Conv2d`` does."""
    package, name = _origin(conv)
    return type(conv) is nn.Conv2d or (package in ('timm', 'mmcv') and name in _PLAIN)


def is_affine_norm(norm: nn.Module) -> bool:
    """Whether a norm in eval mode is a fixed scale and shift, but for an activation behind."""
    known = type(norm) in _NORMS or _origin(norm) in _FOREIGN
    return known and norm.running_mean is not None


def has_hooks_or_parametrization(module: nn.Module) -> bool:
    """Whether a call does more than the layer's class and parameters say.

    Masks of ``torch.nn.utils.prune``, weight norm and spectral norm are hooks, which write the
    weight anew at each call; where they do not, a weight that is no parameter tells them.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or is_parametrized(module)
    return bool(hooked or {'forward', 'weight', 'bias'} & vars(module).keys())


def foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether ``norm`` is a fixed scale and shift of what ``conv`` gives."""
    return (
        is_standard_conv(conv)
        and is_affine_norm(norm)
        and not (has_hooks_or_parametrization(conv) or has_hooks_or_parametrization(norm))
    )


def leftover_module(norm: nn.Module) -> nn.Module:
    """What stands in the place of a folded norm: its activation, or nothing."""
    act = getattr(norm, 'act', None)
    return nn.Identity().train(norm.training) if act is None else act


def kernel_and_bias(conv: nn.Conv2d, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the conv that gives what ``norm`` behind ``conv`` gives, in float64."""
    scale, shift = scale_and_shift(norm)
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    return weight, shift if conv.bias is None else shift + conv.bias.detach().double() * scale


def scale_and_shift(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """A norm in eval mode as x * scale + shift, (C,) each, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.weight is not None:  # frozen norms are not asked whether they are affine
        weight = norm.weight.detach().double()
        scale, shift = scale * weight, shift * weight + norm.bias.detach().double()
    return scale, shift


def with_weights(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """A copy of ``conv`` with another weight, and with a bias; dtype and flags stay its own."""
    new = copy.deepcopy(conv)
    new.weight.data.copy_(weight)
    new.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
    return new


def _pairs(part: nn.Module) -> Iterator[tuple[str, str]]:
    yield from getattr(part, 'folds', ())
    if getattr(type(part), 'forward', None) is nn.Sequential.forward:
        yield from itertools.pairwise(part._modules)  # a layer that stands there twice, too


def fold_pair(part: nn.Module, conv: str, norm: str) -> float:
    """Fold one norm of ``part``; the largest difference that makes on noise."""
    before, behind = getattr(part, conv), getattr(part, norm)
    after = with_weights(before, *kernel_and_bias(before, behind))
    after.bias.requires_grad_(any(p.requires_grad for p in behind.parameters()))
    setattr(part, conv, after)
    rest = leftover_module(behind)
    setattr(part, norm, rest)
    x = noise(after)
    with torch.no_grad():
        return (behind(before(x)) - rest(after(x))).abs().max().item()


def _merge(part: nn.Module) -> float:
    # Not the part's own number, from which pruning may have taken some.
    first = next(module for module in part.modules() if isinstance(module, nn.Conv2d))
    x = noise(first)
    with torch.no_grad():
        before = part(x)
        part.merge_branches()
        part.eval()  # what is new
        return (before - part(x)).abs().max().item()


def noise(*convs: nn.Conv2d) -> torch.Tensor:
    """One picture of normal noise, the same each time, for convs one after the other.

    Shape:
        (1, in_channels, side, side), as many pixels as all kernels and paddings need, 9 at least
    """
    side = 1
    for conv in reversed(convs):
        # What nn.Conv2d itself reads; the other of the two may be out of date.
        zeros = conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)
        pads = conv.padding if zeros else conv._reversed_padding_repeated_twice
        steps = zip(conv.stride, conv.dilation, conv.kernel_size, strict=True)
        reach = max((side - 1) * stride + (size - 1) * wide + 1 for stride, wide, size in steps)
        side = max(reach - 2 * min(pads), 1 if conv.padding_mode == 'zeros' else max(pads) + 1)
    side = max(side, 9)
    generator = torch.Generator().manual_seed(0)
    first = convs[0]
    return torch.randn(1, first.in_channels, side, side, generator=generator).to(first.weight)
