"""All Ghost convs of a conversion, fitted one after the other on what really reaches them."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...layers.bn_folding import has_hooks_or_parametrization
from ...layers.ghost import GhostConv2d
from ...utils.modules import call_model, clone_tensors, deepcopy_detached, eval_mode, removing_hooks
from ..surgery import shift_running_mean
from .channel_statistics import ChannelMoments, ChannelMomentsCollector, moments_from_weights
from .initialization import cheap_side, inherit
from .least_squares import mean_gap, num_samples_for, refit
from .microbatch_scheduler import HELD, peak_activation_bytes, run_microbatches
from .paired_forward import (
    ActivationBatch,
    Arguments,
    ModuleVisitor,
    concat_batches,
    observe_activations,
    one_size,
    rebatch,
    slice_batch,
)

# Bytes that a pass may hold, of statistics and of both streams' maps.
STATISTICS, MEMORY = 2**29, 2**28
# A conv that fewer pictures reach within memory is told by a pass of its own over all of them.
FEW, PART = 64, 4  # pictures; those of a pass at a time


@dataclass
class FitState:
    """The Ghosts of one conversion, on their way.

    Attributes:
        model: The original; it is only read.
        ghosts: By the name of the conv that each stands for.
        norms: Name of the norm behind a conv, '' where there is none, by the conv's name; of convs
            that stay, too.
        errors: Relative squared error of each conv's maps, by name; None where nothing was fitted.
        shifts: (out_channels,) what the norm behind shall add, or where there is none the layer's
            own bias, by the layer's name.
    """

    model: nn.Module
    ghosts: dict[str, GhostConv2d]
    norms: Mapping[str, str]
    errors: dict[str, float | None] = field(default_factory=dict)
    shifts: dict[str, torch.Tensor] = field(default_factory=dict)

    def conv(self, name: str) -> nn.Conv2d:
        """The dense conv."""
        return self.model.get_submodule(name)

    def norm(self, name: str) -> nn.Module | None:
        """The norm behind it."""
        return self.model.get_submodule(self.norms[name]) if self.norms.get(name) else None

    def side(self, name: str) -> int:
        """Of its cheap kernels, pixels."""
        return cheap_side(self.ghosts[name])

    def inherit(self, name: str, stats: ChannelMoments) -> None:
        """Give a Ghost its first weights."""
        self.errors[name] = finite(name, inherit(self.conv(name), self.ghosts[name], stats))


def finite(name: str, error: float) -> float:
    """An error of a conv's maps, which NaN in pictures or weights would make look harmless."""
    if not math.isfinite(error):
        raise ValueError(
            f'{name!r} gives maps that are no finite numbers; look for NaN and infinity in the '
            'weights of the model and in the calibration batches'
        )
    return error


def from_weights(fit: FitState, names: Iterable[str]) -> None:
    """Give Ghosts that have no weights yet the best ones that the kernels alone tell."""
    for name in names:
        if name not in fit.errors:
            fit.inherit(name, moments_from_weights(fit.conv(name), fit.side(name)))


def from_statistics(fit: FitState, names: Iterable[str], batches: list[Any]) -> None:
    """Give Ghosts that have no weights yet those that the original's maps tell, streamed.

    Raises:
        ValueError: The batches never reach one of the convs.
    """
    sides = {name: fit.side(name) for name in names if name not in fit.errors}
    for name, stats in measured(fit.model, sides, batches):
        fit.inherit(name, stats)


def initialize_early_layers(fit: FitState, batches: list[Any]) -> None:
    """First weights where the maps are so large that a fit will see few of the pictures."""
    ahead = peak_activation_bytes(fit.model, fit.ghosts, next(rebatch(batches, 2)))
    early = [name for name, size in ahead.items() if FEW * HELD * size > MEMORY]
    from_statistics(fit, early, list(rebatch(batches, PART)))


def measured(
    model: nn.Module, sides: Mapping[str, int], batches: list[Any]
) -> Iterator[tuple[str, ChannelMoments]]:
    """Correlations of the maps of convs, by name, for cheap kernels of the given sides.

    As many convs as memory allows share a pass over the batches.
    """
    for part in _within_memory(model, sides):
        statistics = {
            name: ChannelMomentsCollector(model.get_submodule(name), sides[name], len(batches))
            for name in part
        }
        handles = [
            model.get_submodule(name).register_forward_hook(lambda m, x, maps, s=s: s.add(maps))
            for name, s in statistics.items()
        ]
        with removing_hooks(*handles), eval_mode(model):
            for batch in batches:
                call_model(model, batch)
        lost = [name for name, stats in statistics.items() if not stats.pixels]
        if lost:
            raise ValueError(f'the calibration batches never reached {lost[0]!r}; keep it dense')
        for name in part:
            yield name, statistics.pop(name).correlations()


def _within_memory(model: nn.Module, sides: Mapping[str, int]) -> Iterator[list[str]]:
    part: list[str] = []
    used = 0
    for name, side in sides.items():
        size = 4 * model.get_submodule(name).out_channels ** 2 * side**2
        if part and used + size > STATISTICS:
            yield part
            part, used = [], 0
        part.append(name)
        used += size
    if part:
        yield part


def fit_sequentially(fit: FitState, batches: list[Any]) -> None:
    """Fit all Ghosts, in the order of the forward pass, on what the converted network gives."""
    stations = {name: make_visitor(fit, name) for name in fit.ghosts}
    kept = {name: visit_kept(fit, name) for name in kept_layers(fit, batches)}
    run_microbatches(fit.model, batches, {**stations, **kept}, MEMORY)


def kept_layers(fit: FitState, batches: list[Any]) -> list[str]:
    """Layers that stay and can take a shift of their channels' means.

    Returns:
        Names of convs with a norm behind or a bias, and of linear layers with a bias, that run
        once in a call and share nothing.
    """
    owners = Counter(id(p) for m in fit.model.modules() for p in m.parameters(recurse=False))
    found = {}
    for name, module in fit.model.named_modules():
        conv = type(module) is nn.Conv2d and name in fit.norms and name not in fit.ghosts
        if not (conv or type(module) is nn.Linear) or has_hooks_or_parametrization(module):
            continue
        takes = module if not fit.norms.get(name) else fit.norm(name)
        own = [getattr(takes, 'running_mean', None), takes._parameters.get('bias')]
        if any(v is not None for v in own) and owners[id(own[1])] <= 1:
            found[name] = module
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *given, name=name: calls.update([name]))
        for name, module in found.items()
    ]
    with removing_hooks(*handles), eval_mode(fit.model):
        call_model(fit.model, next(rebatch(batches, 1)))
    return [name for name in found if calls[name] == 1]


def visit_kept(fit: FitState, name: str) -> ModuleVisitor:
    """A station's visit that brings the means of a dense layer to those of the original.

    Source: bias correction, Nagel et al., Data-Free Quantization, ICCV 2019 (arXiv 1906.04721).
    """

    def visit(forward: Callable, old: ActivationBatch, new: ActivationBatch) -> tuple[Any, Any]:
        wanted, given = old.through(forward), new.through(forward)
        if name not in fit.shifts:
            gap = (wanted - given).double()
            known = wanted.ndim in (2, 4)  # not tokens, whose channels come last
            images = gap if gap.ndim == 4 else gap[..., None, None]
            fit.shifts[name] = mean_gap(images) if known else gap.new_zeros(1)
        return wanted, add_shift(given, fit.shifts[name])

    return visit


def make_visitor(fit: FitState, name: str, behind: bool = True) -> ModuleVisitor:
    """A station's visit that fits one Ghost, the first time, and runs it.

    Which map hangs on which comes from the original's maps, the weights from what the Ghost gets.

    Args:
        fit: Gets the error and the shift.
        name: Of the conv.
        behind: Whether the norm behind, if any, may take the shift.
    """
    ghost = fit.ghosts[name]
    taken = behind and fit.norm(name) is not None and ghost.primary_conv.bias is None

    def visit(forward: Callable, old: ActivationBatch, new: ActivationBatch) -> tuple[Any, Any]:
        wanted = old.through(forward)
        if name not in fit.errors:
            fit.inherit(name, _correlations(fit, name, wanted))
        if name not in fit.shifts:
            fit.shifts[name] = _refit(fit, name, new, wanted, taken)
        return wanted, new.through(lambda *given: add_shift(ghost(*given), fit.shifts[name]))

    return visit


def add_shift(maps: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Add (C,) to the channels of (N, C, ...)."""
    return maps + shift.to(maps).view(-1, *[1] * (maps.ndim - 2))


def _correlations(fit: FitState, name: str, maps: torch.Tensor) -> ChannelMoments:
    parts = maps.split(PART)
    stats = ChannelMomentsCollector(fit.conv(name), fit.side(name), len(parts))
    for part in parts:
        stats.add(part)
    return stats.correlations()


def _refit(
    fit: FitState, name: str, given: ActivationBatch, wanted: torch.Tensor, taken: bool
) -> torch.Tensor:
    """Fit a Ghost to its targets in place; what is to be added to its maps."""
    ghost = fit.ghosts[name]
    none = torch.zeros(wanted.shape[1], device=wanted.device)
    if not isinstance(ghost.cheap_operation, nn.Conv2d):
        return none
    exact = torch.float64 if wanted.dtype == torch.float64 else torch.float32
    work = deepcopy_detached(ghost, share=True).to(exact).requires_grad_(False)
    number = min(given.number, num_samples_for(work, given.first(1)[0][0], wanted))
    (x, *_), _ = given.first(number)
    found = refit(work, x.to(exact), wanted[:number].to(exact), taken)
    ghost.load_state_dict(work.state_dict())
    fit.errors[name] = finite(name, found.error)
    return found.shift if taken else none


@torch.no_grad()
def absorb_shifts(model: nn.Module, fit: FitState) -> None:
    """Let the norms and biases of the converted model add the shifts."""
    for name, shift in fit.shifts.items():
        if not shift.any():
            continue
        if fit.norms.get(name):
            shift_running_mean(model.get_submodule(fit.norms[name]), shift)
        else:
            bias = model.get_submodule(name).bias
            bias += shift.to(bias)


def as_batches(calibration: Iterable[Any], model: nn.Module) -> list[Any]:
    """Calibration batches as a list; a batch that is a list is a tuple of arguments, too.

    Raises:
        ValueError: There is none, or nothing that the model can be called with.
    """
    if isinstance(calibration, torch.Tensor | Mapping):
        raise ValueError(
            f'calibration takes several batches, got one {type(calibration).__name__}; give it in '
            'a list'
        )
    batches = [tuple(batch) if isinstance(batch, list) else batch for batch in calibration]
    if not batches:
        raise ValueError('calibration holds no batch; leave it out to go without data')
    try:
        with eval_mode(model):
            call_model(model, slice_batch(batches[0], slice(0, 1)))
    except TypeError as error:
        raise ValueError(
            'a calibration batch is what the model is called with, a tensor, a tuple of arguments '
            f'or a mapping of keyword arguments, without labels; a {type(batches[0]).__name__} '
            f'was given: {error}'
        ) from error
    return batches


def can_concat(batches: list[Any]) -> bool:
    """Whether pictures of all batches, and each twice over, go through a network together."""
    first, *others = (slice_batch(batch, slice(0, 1)) for batch in batches)
    return one_size(batches) and concat_batches([first, first, *others]) is not None


def bytes_per_picture(model: nn.Module, given: Arguments) -> int:
    """What both streams hold at the widest place of a call: three maps of the largest size each."""
    sizes = [0]
    args, kwargs = clone_tensors(given)
    with observe_activations(model, sizes.append), eval_mode(model):
        model(*args, **kwargs)
    return HELD * max(sizes)
