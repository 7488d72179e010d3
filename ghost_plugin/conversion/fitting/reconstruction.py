"""Gradient steps on unlabelled images: each layer or block learns the output of the original's.

Source: Li et al., BRECQ, ICLR 2021 (arXiv 2102.05426), for the block as the unit and for an error
that counts by the gradient of the output; there for quantisation, and channel by channel. Here
channels are weighed together, by the covariance of the gradient: on EfficientNet-Lite0 at 80 % of
its multiply-adds this left a divergence of 0.20 on other images, and 0.25 without. Inputs come from
the converted model, targets from the original, and the state that was best on images held back from
the steps is kept.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...utils.modules import clone_tensors, deepcopy_detached, eval_mode
from ..surgery import replace_modules
from .batches import Arguments, channels_last, concat_nested, take_samples
from .least_squares import num_held
from .microbatch_scheduler import HELD_ACTIVATIONS, run_microbatches
from .output_gradients import channel_metrics, gradients_everywhere
from .paired_forward import (
    IMAGES_PER_CALL,
    ActivationBatch,
    Forward,
    ModuleVisitor,
    observe_activations,
    paired_forward,
)
from .sequential import (
    ACTIVATION_BYTES,
    FitResults,
    FitTask,
    LayerFit,
    absorb_results,
    add_shift,
    dense_visitor,
    differ,
    ghost_visitor,
    initialize_early_layers,
    initialize_ghosts,
    layers_with_means,
)

LEARNING_RATE = 1e-3  # of Adam; it falls by a cosine
MAX_BATCH, MIN_BATCH, MAX_BATCH_BYTES = 48, 8, 2**27  # images of a step, and their activations
HOLDOUT_DIVISOR, NUM_EVALS = 8, 6  # one image in so many is held back; evaluations of these
BLOCK_BYTES = 4 * ACTIVATION_BYTES  # of activations between blocks that may be held
MAX_CONVS = 12  # of a block; a conv among more than that is reconstructed by itself


@dataclass(frozen=True)
class BlockFit:
    """Result of one block.

    Attributes:
        block: Replaces the original's.
        layers: Results of the Ghosts inside, by the conv's name.
    """

    block: nn.Module
    layers: Mapping[str, LayerFit]


def find_blocks(model: nn.Module, names: Sequence[str]) -> dict[str, list[str]]:
    """Find the blocks that hold convs; a conv outside of blocks is a block of its own.

    A block is the smallest module around a conv that holds more convs, is no mere sequence and
    has at most ``MAX_CONVS``; of nested ones the outer one counts.

    Args:
        model: The original.
        names: Of convs.

    Returns:
        Names of convs by the block's name.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_find_block(model, name)].append(name)
    outer: dict[str, list[str]] = defaultdict(list)
    for block, inside in found.items():
        holder = min((b for b in found if block.startswith(f'{b}.')), key=len, default=block)
        outer[holder] += inside
    return dict(outer)


def _find_block(model: nn.Module, name: str) -> str:
    parts = name.split('.')
    for depth in range(len(parts) - 1, 0, -1):
        path = '.'.join(parts[:depth])
        module = model.get_submodule(path)
        convs = sum(isinstance(m, nn.Conv2d) for m in module.modules())
        if convs > MAX_CONVS:
            break
        if convs > 1 and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return path
    return name


def reconstruct_layers(task: FitTask, batches: Sequence[Any], steps: int, seed: int) -> FitResults:
    """Fit all Ghosts, each by gradient steps after its least squares.

    Args:
        task: Its Ghosts change.
        batches: Batches whose images have one size.
        steps: Of Adam, for each layer.
        seed: Of the order of images.
    """
    early = initialize_early_layers(task, batches)
    learn = partial(reconstruct, steps=steps, seed=seed)
    visitors = {name: _layer_visitor(task, name, early.get(name), learn) for name in task.ghosts}
    return _run(task, batches, visitors, early, 'layers')


def reconstruct_blocks(task: FitTask, batches: Sequence[Any], steps: int, seed: int) -> FitResults:
    """Fit all Ghosts, and each block that holds some by gradient steps on its output.

    Args:
        task: Its Ghosts change.
        batches: Batches whose images have one size.
        steps: Of Adam, for each block.
        seed: Of the order of images and of the projections behind the channels' weights.
    """
    early = initialize_early_layers(task, batches)
    dense = layers_with_means(task, batches) if task.repair else []
    dense = [name for name in dense if isinstance(task.conv(name), nn.Conv2d)]
    blocks = find_blocks(task.model, [*task.ghosts, *dense])
    single = {name for name, convs in blocks.items() if convs == [name]}
    for name in single - task.ghosts.keys():
        blocks.pop(name)  # it is refitted alone
    metrics = channel_metrics(task.model, blocks.keys() - single, batches, seed, task.report)
    visitors: dict[str, ModuleVisitor[Any]] = {}
    for name, convs in blocks.items():
        learn = partial(reconstruct, channel_metric=metrics.get(name), steps=steps, seed=seed)
        if name in single:
            visitors[name] = ghost_visitor(task, name, early.get(name))
        else:
            visitors[name] = _block_visitor(task, name, convs, early, learn)
    return _run(task, batches, visitors, early, 'blocks')


def _run(
    task: FitTask,
    batches: Sequence[Any],
    visitors: dict[str, ModuleVisitor[Any]],
    early: Mapping[str, LayerFit],
    stage: str,
) -> FitResults:
    means = {
        name: dense_visitor(task, name)
        for name in layers_with_means(task, batches)
        if not any(name.startswith(f'{block}.') for block in visitors)
    }
    report = partial(task.report, stage)
    found = run_microbatches(task.model, batches, {**visitors, **means}, BLOCK_BYTES, report)
    layers = dict(early)
    blocks = {}
    for name, fit in found.items():
        if isinstance(fit, BlockFit):
            blocks[name] = fit.block
            layers.update(fit.layers)
        else:
            layers[name] = fit
    return FitResults(layers, blocks)


def _layer_visitor(
    task: FitTask, name: str, first: LayerFit | None, learn: Callable[..., float]
) -> ModuleVisitor[LayerFit]:
    fit_first = ghost_visitor(task, name, first)

    def _visit(
        forward: Forward, old: ActivationBatch, new: ActivationBatch, fit: LayerFit | None
    ) -> tuple[Any, Any, LayerFit]:
        wanted, given, fitted = fit_first(forward, old, new, fit)
        if fit is None and fitted.shift is not None:
            learn(task.ghosts[name], new, wanted - fitted.shift.to(wanted)[:, None, None])
            given = add_shift(new.map(task.ghosts[name]), fitted.shift)
        return wanted, given, fitted

    return _visit


def _block_visitor(
    task: FitTask,
    name: str,
    convs: Sequence[str],
    early: Mapping[str, LayerFit],
    learn: Callable[..., float],
) -> ModuleVisitor[BlockFit]:
    # A copy made now, because the forward of the block itself will be overridden.
    student = deepcopy_detached(task.model.get_submodule(name), share=True).eval()

    def _visit(
        forward: Forward, old: ActivationBatch, new: ActivationBatch, fit: BlockFit | None
    ) -> tuple[Any, Any, BlockFit]:
        wanted = old.map(forward)
        if fit is None and not differ(old, new) and not any(conv in task.ghosts for conv in convs):
            fit = BlockFit(student, {})  # nothing was converted yet
        if fit is None:
            fit = BlockFit(student, _insert_ghosts(task, student, name, convs, early, old, new))
            learn(student, new, wanted)
        return wanted, new.map(fit.block), fit

    return _visit


def _insert_ghosts(
    task: FitTask,
    block: nn.Module,
    name: str,
    convs: Sequence[str],
    early: Mapping[str, LayerFit],
    old: ActivationBatch,
    new: ActivationBatch,
) -> dict[str, LayerFit]:
    """Put Ghosts into a block, each fitted to its conv before the block learns as one."""
    start = len(name) + 1
    norms = {c: n[start:] for c in convs if (n := task.norms.get(c, '')).startswith(f'{name}.')}
    visitors = {
        conv[start:]: ghost_visitor(task, conv, early.get(conv), shift_norm=conv in norms)
        if conv in task.ghosts
        else dense_visitor(task, conv, shift_norm=conv in norms)
        for conv in convs
    }
    size = bytes_per_image(block, old.first(1))
    few = max(1, min(old.num_images, 2 * ACTIVATION_BYTES // max(1, size)))
    fits = paired_forward(block, concat_nested(old.first(few), new.first(few)), few, visitors)
    layers = {conv: fits[conv[start:]] for conv in convs if conv[start:] in fits}
    known = {conv: early[conv] for conv in convs if conv in early} | layers
    ghosts = [conv for conv in convs if conv in task.ghosts]
    missed = [conv for conv in ghosts if conv not in known]  # that run on crops and the like
    layers = known | initialize_ghosts(task, missed)
    replace_modules(block, {conv[start:]: task.ghosts[conv] for conv in ghosts})
    inside = {conv[start:]: replace(fit, error=None) for conv, fit in layers.items()}
    absorb_results(block, {conv[start:]: norm for conv, norm in norms.items()}, FitResults(inside))
    # The block has the shifts.
    return {conv: LayerFit(fit.error) for conv, fit in layers.items() if conv in task.ghosts}


def bytes_per_image(model: nn.Module, arguments: Arguments) -> int:
    """Bytes of activations that both models hold at the widest place of a call.

    Args:
        model: It runs once.
        arguments: Of one image.
    """
    sizes = [0]
    args, kwargs = clone_tensors(arguments)
    with observe_activations(model, sizes.append), eval_mode(model):
        model(*args, **kwargs)
    return HELD_ACTIVATIONS * max(sizes)


def reconstruct(
    student: nn.Module,
    inputs: ActivationBatch,
    wanted: Any,
    channel_metric: torch.Tensor | None = None,
    *,
    steps: int,
    seed: int,
) -> float:
    """Make Adam steps towards targets, in place; the state that was best on held images stays.

    Args:
        student: A part of a model; it stays in eval mode, so that its norms keep their statistics.
        inputs: Its arguments.
        wanted: Its targets, nested tensors.
        channel_metric: (C, C) weight of the output's channels together; all count alike without.
        steps: Of Adam.
        seed: Of the order of images.

    Returns:
        Squared error relative to the targets' variance on the held images.
    """
    number = inputs.num_images
    given = inputs.first(number)

    def _loss(chosen: torch.Tensor) -> torch.Tensor:
        x, y = (channels_last(take_samples(part, chosen, number)) for part in (given, wanted))
        return reconstruction_loss(student, x, y, channel_metric)

    @torch.no_grad()
    def _error(chosen: torch.Tensor) -> float:
        parts = torch.split(chosen, IMAGES_PER_CALL)
        return sum(len(part) * float(_loss(part)) for part in parts) / len(chosen)

    # The last images, which the fits that came before have held back, too.
    num_seen = number - num_held(number, HOLDOUT_DIVISOR)
    seen, held = torch.arange(number).tensor_split([num_seen])
    if not len(held):
        return _error(seen)
    random = torch.Generator().manual_seed(seed)
    flags = {parameter: parameter.requires_grad for parameter in student.parameters()}
    student.eval().requires_grad_(True)
    optimizer = torch.optim.Adam(student.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    size = bytes_per_image(student, take_samples(given, range(1), number))
    batch = min(len(seen), MAX_BATCH, max(MIN_BATCH, MAX_BATCH_BYTES // max(1, size)))
    best, state = _error(held), copied_state(student)
    for step in range(1, steps + 1):
        chosen = seen[torch.randint(len(seen), (batch,), generator=random)]
        with torch.enable_grad(), gradients_everywhere(student):
            loss = _loss(chosen)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // NUM_EVALS) == 0:
            now = _error(held)
            if now < best:
                best, state = now, copied_state(student)
    student.load_state_dict(state)
    for parameter, flag in flags.items():
        parameter.grad = None
        parameter.requires_grad_(flag)
    return best


def reconstruction_loss(
    student: nn.Module, given: Arguments, wanted: Any, channel_metric: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of all output tensors, each relative to its target's variance.

    Args:
        student, wanted, channel_metric: As in :func:`reconstruct`; the metric is that of the one
            output (N, C, H, W).
        given: Arguments of the student.
    """
    args, kwargs = clone_tensors(given)  # a block may write into its inputs
    outputs = pytree.tree_flatten(student(*args, **kwargs))[0]
    losses = [
        _relative_error(mine - theirs, theirs, channel_metric)
        for mine, theirs in zip(outputs, pytree.tree_flatten(wanted)[0], strict=True)
        if isinstance(theirs, torch.Tensor) and theirs.is_floating_point()
    ]
    return torch.stack(losses).mean()


def _relative_error(
    gap: torch.Tensor, wanted: torch.Tensor, channel_metric: torch.Tensor | None
) -> torch.Tensor:
    if channel_metric is None:
        return gap.square().mean() / wanted.var().clamp_min(1e-12)
    centred = wanted - wanted.mean((0, 2, 3), keepdim=True)
    flat = [maps.float().transpose(0, 1).flatten(1) for maps in (gap, centred)]
    lost, energy = ((channel_metric @ maps * maps).sum() for maps in flat)
    return lost / energy.clamp_min(1e-12)


def copied_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """State dict with tensors of its own."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
