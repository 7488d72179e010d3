"""Sequential calibration: each Ghost conv is fitted on the inputs that really reach it."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ...graph.shortcuts import Shortcut, find_shortcuts
from ...layers.bn_folding import has_hooks_or_parametrization, scale_and_shift
from ...layers.ghost import GhostConv2d
from ...utils.modules import (
    call_model,
    deepcopy_detached,
    eval_mode,
    frozen_parameters,
    partial_calls,
    removing_hooks,
    tensors_in,
)
from ..progress import Report, silent, tracked
from ..surgery import build_ghost, shift_running_mean
from .batches import rebatch
from .channel_statistics import ChannelMoments, ChannelMomentsCollector, moments_from_weights
from .initialization import Assignment, filter_size, initialize_ghost
from .least_squares import fit_ghost, mean_gap, num_samples_for
from .microbatch_scheduler import HELD_ACTIVATIONS, peak_activation_bytes, run_microbatches
from .paired_forward import ActivationBatch, Forward, ModuleVisitor

STATISTICS_BYTES = 2**29  # that one pass may hold
# The same of activations. EfficientNet-Lite0 at 80 % of its multiply-adds, from 350 images, had a
# divergence of 0.103 on others with half of this, because fewer images reach each fit at a time,
# and of 0.087 with it, in twice the time.
ACTIVATION_BYTES = 2**29
# A conv that fewer images reach within memory gets its first weights from a pass over all of them.
MIN_IMAGES = 64
MAX_MADE_UP = 10  # variances of a channel that the error of its shortcut may have
STATISTICS_BATCH = 4  # images at a time of that pass


@dataclass(frozen=True)
class FitTask:
    """The Ghosts of one conversion, which are given their weights in place.

    Attributes:
        model: The original; it is only read.
        ghosts: By the name of the conv that each replaces.
        norms: Name of the norm behind a conv, '' if there is none, by the conv's name; also of
            convs that stay.
        repair: Whether layers that stay dense are refitted to the inputs that reach them, and
            channels scaled towards the variance of the original's.
        report: Gets the events of the stages.
        assignments: Of ghosts that do not choose theirs alone, by the conv's name.
    """

    model: nn.Module
    ghosts: Mapping[str, GhostConv2d]
    norms: Mapping[str, str]
    repair: bool = True
    report: Report = silent
    assignments: Mapping[str, Assignment] = field(default_factory=dict)

    def conv(self, name: str) -> nn.Conv2d:
        """The dense conv."""
        return cast(nn.Conv2d, self.model.get_submodule(name))

    def norm(self, name: str) -> nn.Module | None:
        """The norm behind a conv, if any."""
        return self.model.get_submodule(self.norms[name]) if self.norms.get(name) else None

    def initialize(self, name: str, moments: ChannelMoments) -> float:
        """Give a Ghost its first weights.

        Args:
            name: Of the conv.
            moments: Of the conv's output.

        Returns:
            Relative squared error of the output.
        """
        given = self.assignments.get(name)
        error = initialize_ghost(self.conv(name), self.ghosts[name], moments, given)
        return _require_finite(name, error)


@dataclass(frozen=True)
class LayerFit:
    """Result of one layer.

    Attributes:
        error: Relative squared error of the output; None for a layer that stays dense.
        shift: (out_channels,) for the norm behind to add, or for the layer's own bias.
        refitted: A dense layer with other weights, which replaces the original's.
    """

    error: float | None = None
    shift: torch.Tensor | None = None
    refitted: nn.Module | None = None


@dataclass(frozen=True)
class FitResults:
    """Results of a conversion's fits, next to the weights of the Ghosts.

    Attributes:
        layers: By name.
        blocks: Modules that replace blocks of the model after reconstruction, by name.
        network: State of the whole converted model, where it learned as one.
    """

    layers: Mapping[str, LayerFit] = field(default_factory=dict)
    blocks: Mapping[str, nn.Module] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> dict[str, float]:
        """Relative squared error of each Ghost's output, by name."""
        return {name: fit.error for name, fit in self.layers.items() if fit.error is not None}


def _require_finite(name: str, error: float) -> float:
    """Raise at NaN, which comparisons would take for a small error."""
    if not math.isfinite(error):
        raise ValueError(
            f'the output of {name!r} is not finite; look for NaN and infinity in the weights of '
            'the model and in the calibration batches'
        )
    return error


def initialize_ghosts(
    task: FitTask, names: Iterable[str], batches: Sequence[Any] | None = None
) -> dict[str, LayerFit]:
    """Give Ghosts their first weights.

    Args:
        task: Its Ghosts change.
        names: Of convs.
        batches: As in :func:`collect_moments`.

    Returns:
        Results by name.

    Raises:
        ValueError: The batches never reach one of the convs.
    """
    sizes = {name: filter_size(task.ghosts[name]) for name in names}
    statistics = collect_moments(task.model, sizes, batches, task.report)
    moments = tracked(statistics, len(sizes), task.report, 'first weights')
    return {name: LayerFit(task.initialize(name, own)) for name, own in moments}


def fit_from_weights(task: FitTask) -> FitResults:
    """Give all Ghosts their first weights, without data."""
    return FitResults(initialize_ghosts(task, task.ghosts))


def initialize_early_layers(task: FitTask, batches: Sequence[Any]) -> dict[str, LayerFit]:
    """Give first weights to Ghosts whose activations are so large that a fit sees few images.

    Args:
        task: Its Ghosts change.
        batches: All of them are run.

    Returns:
        Results by name.
    """
    peaks = peak_activation_bytes(task.model, task.ghosts, next(rebatch(batches, 2)))
    early = [
        name
        for name, size in peaks.items()
        if MIN_IMAGES * HELD_ACTIVATIONS * size > ACTIVATION_BYTES
    ]
    return initialize_ghosts(task, early, list(rebatch(batches, STATISTICS_BATCH)))


def collect_moments(
    model: nn.Module,
    sizes: Mapping[str, int],
    batches: Sequence[Any] | None,
    report: Report = silent,
) -> Iterator[tuple[str, ChannelMoments]]:
    """Compute the moments of convs' outputs; as many convs as memory allows share a pass.

    Args:
        model: The original.
        sizes: Of the cheap filters, pixels, by the conv's name.
        batches: All of them are run; without any the input is taken as white noise.
        report: Gets the batches that have run, of all passes.

    Returns:
        Names and moments.

    Raises:
        ValueError: The batches never reach one of the convs.
    """
    convs: dict[str, Any] = {name: model.get_submodule(name) for name in sizes}
    if not batches:
        for name, size in sizes.items():
            yield name, moments_from_weights(convs[name], size)
        return
    passes = list(_within_memory(convs, sizes))
    report('statistics', 0, len(passes) * len(batches))
    for index, names in enumerate(passes):
        collectors = {
            name: ChannelMomentsCollector(convs[name], sizes[name], len(batches)) for name in names
        }
        handles = [
            convs[name].register_forward_hook(lambda module, inputs, maps, c=c: c.add(maps))
            for name, c in collectors.items()
        ]
        with removing_hooks(*handles), eval_mode(model), partial_calls(model, names) as call:
            for done, batch in enumerate(batches, 1 + index * len(batches)):
                call(batch)
                report('statistics', done, len(passes) * len(batches))
        lost = [name for name, collector in collectors.items() if not collector.positions]
        if lost:
            raise ValueError(f'the calibration batches never reached {lost[0]!r}; keep it dense')
        for name in names:
            yield name, collectors.pop(name).moments()


def _within_memory(convs: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    names: list[str] = []
    used = 0
    for name, size in sizes.items():
        needed = 4 * convs[name].out_channels ** 2 * size**2
        if names and used + needed > STATISTICS_BYTES:
            yield names
            names, used = [], 0
        names.append(name)
        used += needed
    if names:
        yield names


def fit_sequentially(task: FitTask, batches: Sequence[Any]) -> FitResults:
    """Fit all Ghosts, in the order of the forward pass, on what the converted model gives.

    Args:
        task: Its Ghosts change.
        batches: Batches whose images have one size.

    Returns:
        Results of all layers that the batches reach with an input for each image.
    """
    early = initialize_early_layers(task, batches)
    visitors = {name: ghost_visitor(task, name, early.get(name)) for name in task.ghosts}
    dense = {name: dense_visitor(task, name) for name in layers_with_means(task, batches)}
    found = run_microbatches(
        task.model,
        batches,
        visitors | dense,
        ACTIVATION_BYTES,
        partial(task.report, 'layers'),
        _shortcuts(task, [*visitors, *dense]) if task.repair else {},
    )
    return FitResults(early | found)


def _shortcuts(task: FitTask, names: Sequence[str]) -> dict[str, Shortcut]:
    norms = {name: task.norms[name] for name in names if name in task.norms}
    try:
        return find_shortcuts(task.model, norms)
    except Exception:  # a model that is changed in place need not allow a copy
        return {}


def initialize_others(task: FitTask, results: FitResults, batches: Sequence[Any]) -> FitResults:
    """Give first weights to Ghosts that a sequential fit could not reach.

    Args:
        task: Its Ghosts change.
        results: Of the fit.
        batches: All of them are run.

    Returns:
        Results of all Ghosts.
    """
    others = [name for name in task.ghosts if name not in results.errors]
    layers = {**results.layers, **initialize_ghosts(task, others, batches)}
    return replace(results, layers=layers)


def layers_with_means(task: FitTask, batches: Sequence[Any]) -> list[str]:
    """Find the layers that stay dense and can take a shift of their channels' means.

    Args:
        task: Of a conversion.
        batches: One image is run.

    Returns:
        Names of convs with a norm behind or a bias, and of linear layers with a bias, that run
        once in a call and share nothing.
    """
    owners = Counter(id(p) for m in task.model.modules() for p in m.parameters(recurse=False))
    found = {}
    for name, module in task.model.named_modules():
        conv = type(module) is nn.Conv2d and name in task.norms and name not in task.ghosts
        if not (conv or type(module) is nn.Linear) or has_hooks_or_parametrization(module):
            continue
        norm = task.norm(name)
        takes = module if norm is None else norm
        bias = takes._parameters.get('bias')
        has_mean = getattr(takes, 'running_mean', None) is not None or bias is not None
        if has_mean and owners[id(bias)] <= 1:
            found[name] = module
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *given, name=name: calls.update([name]))
        for name, module in found.items()
    ]
    with removing_hooks(*handles), eval_mode(task.model):
        call_model(task.model, next(rebatch(batches, 1)))
    return [name for name in found if calls[name] == 1]


def dense_visitor(task: FitTask, name: str, *, shift_norm: bool = True) -> ModuleVisitor[LayerFit]:
    """Visitor that refits a dense layer, towards the original's outputs from the inputs it gets.

    Weights that change little are preferred (ridge regression towards the layer's own). Without
    ``task.repair`` only the channels' means follow.

    Source: bias correction, Nagel et al., Data-Free Quantization, ICCV 2019 (arXiv 1906.04721).

    Args:
        task: Of a conversion.
        name: Of the layer.
        shift_norm: Whether the norm behind, if any, may take a shift.
    """
    # Not tokens and feature maps of linear layers, whose channels come last.
    dimensions = 2 if isinstance(task.model.get_submodule(name), nn.Linear) else 4
    # A copy made now, because the forward of the layer itself will be overridden.
    own: Any = deepcopy_detached(task.model.get_submodule(name)).eval()
    free = shift_norm and task.norm(name) is not None

    def _visit(
        forward: Forward, old: ActivationBatch, new: ActivationBatch, fit: LayerFit | None
    ) -> tuple[Any, Any, LayerFit]:
        wanted = old.map(forward)
        if fit is None and task.repair and wanted.ndim == dimensions and differ(old, new):
            fit = _refit(name, own, new, _target(task.norm(name), wanted, old, new), free)
        if fit is None:
            gap = (wanted - new.map(forward)).double()
            known = wanted.ndim == dimensions
            maps = gap if gap.ndim == 4 else gap[..., None, None]
            takes = free or own.bias is not None
            fit = LayerFit(shift=mean_gap(maps) if known and takes else gap.new_zeros(1))
        return wanted, add_shift(new.map(fit.refitted or forward), fit.shift), fit

    return _visit


def differ(old: ActivationBatch, new: ActivationBatch) -> bool:
    """Say if a layer's inputs changed, that is, if any layer in front of it was converted.

    Args:
        old: Inputs of the layer in the original.
        new: Inputs of the same layer in the converted model.
    """
    pairs = zip(tensors_in(old.first(1)), tensors_in(new.first(1)), strict=True)
    return not all(torch.equal(a, b) for a, b in pairs)


def _target(
    norm: nn.Module | None, wanted: torch.Tensor, old: ActivationBatch, new: ActivationBatch
) -> torch.Tensor:
    """Outputs that a layer shall give, so that the sum with its shortcut becomes the original's.

    Source: He et al., Channel Pruning, ICCV 2017 (arXiv 1707.06168), section 3.3, for branches
    whose targets make up for the error of the shortcut.
    """
    if old.shortcuts is None or new.shortcuts is None:
        return wanted
    missing = torch.cat([*old.shortcuts]) - torch.cat([*new.shortcuts])
    if missing.shape != wanted.shape or missing.ndim != 4:
        return wanted
    if norm is not None:
        missing = missing / scale_and_shift(norm)[0].to(missing)[:, None, None]
    # A channel that the norm makes vanish would need large weights.
    limit = MAX_MADE_UP * wanted.var((0, 2, 3), correction=0)
    possible = missing.square().mean((0, 2, 3)) <= limit  # not NaN
    return wanted + torch.where(possible[:, None, None], missing, 0)


def _refit(
    name: str, layer: Any, given: ActivationBatch, wanted: torch.Tensor, free: bool
) -> LayerFit:
    """Fit a copy of a dense layer, as a Ghost conv without ghosts."""
    conv: Any = layer
    if isinstance(layer, nn.Linear):
        conv = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None)
        conv.to(layer.weight)
        with torch.no_grad():
            conv.weight.copy_(layer.weight[:, :, None, None])
            if layer.bias is not None:
                conv.bias.copy_(layer.bias)
    ghost = build_ghost(conv, {'ratio': 1, 'dw_size': 1, 'cheap': 'depthwise'})
    ghost.primary_conv.load_state_dict(conv.state_dict())
    fit = _fit_layer(name, ghost, given, wanted, free, None, match_variances=True)
    refitted: Any = deepcopy_detached(layer)
    with torch.no_grad():
        refitted.weight.copy_(ghost.primary_conv.weight.view_as(layer.weight))
        if layer.bias is not None:
            refitted.bias.copy_(ghost.primary_conv.bias)
    return LayerFit(shift=fit.shift, refitted=refitted)


def ghost_visitor(
    task: FitTask, name: str, first: LayerFit | None = None, *, shift_norm: bool = True
) -> ModuleVisitor[LayerFit]:
    """Visitor that fits one Ghost, at the first call, and runs it.

    The assignment of ghosts comes from the original's output, the weights from the Ghost's input.

    Args:
        task: Its Ghost changes.
        name: Of the conv.
        first: Result of the Ghost's first weights, if it has them already.
        shift_norm: Whether the norm behind, if any, may take a shift.
    """
    ghost, conv = task.ghosts[name], task.conv(name)
    free = shift_norm and task.norm(name) is not None and ghost.primary_conv.bias is None

    def _visit(
        forward: Forward, old: ActivationBatch, new: ActivationBatch, fit: LayerFit | None
    ) -> tuple[Any, Any, LayerFit]:
        wanted = old.map(forward)
        if fit is None:
            start = first or LayerFit(
                task.initialize(name, _moments(conv, filter_size(ghost), wanted))
            )
            target = _target(task.norm(name), wanted, old, new)
            fit = _fit_layer(
                name, ghost, new, target, free, start.error, match_variances=task.repair
            )
        return wanted, new.map(lambda *given: add_shift(ghost(*given), fit.shift)), fit

    return _visit


def add_shift(maps: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    """Shift the channels of a layer's output.

    Args:
        maps: (N, C, ...).
        shift: (C,), if any.
    """
    return maps if shift is None else maps + shift.to(maps).view(-1, *[1] * (maps.ndim - 2))


def _moments(conv: nn.Conv2d, size: int, maps: torch.Tensor) -> ChannelMoments:
    parts = torch.split(maps, STATISTICS_BATCH)
    collector = ChannelMomentsCollector(conv, size, len(parts))
    for part in parts:
        collector.add(part)
    return collector.moments()


def _fit_layer(
    name: str,
    ghost: GhostConv2d,
    given: ActivationBatch,
    wanted: torch.Tensor,
    free: bool,
    error: float | None,
    *,
    match_variances: bool,
) -> LayerFit:
    """Fit a Ghost in place to its targets, in float32 at least."""
    none = torch.zeros(wanted.shape[1], device=wanted.device)
    if ghost.ghosts_per_group and not isinstance(ghost.cheap_operation, nn.Conv2d):
        return LayerFit(error, none)
    exact = torch.float64 if wanted.dtype == torch.float64 else torch.float32
    own = ghost.primary_conv.weight.dtype
    if wanted.ndim == 2:
        wanted = wanted[..., None, None]
    number = min(given.num_images, num_samples_for(ghost, _maps(given, 1), wanted))
    x = _maps(given, number).to(exact)
    with frozen_parameters(ghost):
        found = fit_ghost(ghost.to(exact), x, wanted[:number].to(exact), free, match_variances)
    ghost.to(own)
    return LayerFit(_require_finite(name, found.error), found.shift if free else none)


def _maps(given: ActivationBatch, number: int) -> torch.Tensor:
    """The input of a layer for the first images, vectors as feature maps of one pixel."""
    args, kwargs = given.first(number)
    x: torch.Tensor = (*args, *kwargs.values())[0]
    return x if x.ndim == 4 else x[..., None, None]


@torch.no_grad()
def absorb_results(model: nn.Module, norms: Mapping[str, str], results: FitResults) -> None:
    """Move the shifts into norms and biases of the converted model, and load its blocks.

    Args:
        model: It has its Ghosts already; changed in place.
        norms: As in :class:`FitTask`.
        results: Of the fits.
    """
    for name, fit in results.layers.items():
        if fit.refitted is not None:
            model.get_submodule(name).load_state_dict(fit.refitted.state_dict())
        if fit.shift is None or not fit.shift.any():
            continue
        if norms.get(name):
            shift_running_mean(model.get_submodule(norms[name]), fit.shift)
        else:
            bias: Any = model.get_submodule(name).bias
            bias += fit.shift.to(bias)
    for name, block in results.blocks.items():
        model.get_submodule(name).load_state_dict(block.state_dict())
    if results.network:
        model.load_state_dict(results.network)
