"""Stages 5 and 6: fit the Ghost convs of a plan and put them into a model.

The plan is only read; the errors of its layers are in the plan of the result.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from ..graph.channel_permutation import shortcut_ghosts
from ..layers.ghost import GhostConv2d
from ..utils.modules import deepcopy_detached, plain_forward
from .dense_checkpoints import convert_dense_weights
from .fitting.batches import as_batches, can_concat
from .fitting.divergence import divergence
from .fitting.few_images import converted_outputs, few_images, misled
from .fitting.joint_assignment import assign_jointly
from .fitting.network import reconstruct_network
from .fitting.reconstruction import reconstruct_blocks, reconstruct_layers
from .fitting.sequential import (
    FitResults,
    FitTask,
    absorb_results,
    fit_from_weights,
    fit_sequentially,
    initialize_others,
)
from .fitting.views import num_views, with_views
from .inspection import check_root
from .plan import NUM_STEPS, ConversionPlan, fingerprint
from .progress import ProgressFn, Report, reporting, silent
from .reasons import FINAL, REASONS
from .surgery import (
    build_ghosts,
    check_forwards,
    has_settings,
    replace_modules,
    update_optimizers,
)

_logger = logging.getLogger(__name__)
RECONSTRUCT = ('layer', 'block', 'network')


@dataclass(frozen=True)
class ConversionResult:
    """A converted model and its plan.

    Attributes:
        model: The model with Ghost convs.
        plan: The plan with the error of each layer that was fitted.
    """

    model: nn.Module
    plan: ConversionPlan


@plain_forward()
@torch.inference_mode(False)  # fits need gradients, and the new weights shall learn
def apply_plan(
    plan: ConversionPlan,
    model: nn.Module,
    *,
    calibration: Iterable[Any] | None = None,
    reconstruct: str | None = None,
    steps: int = NUM_STEPS,
    repair: bool = True,
    share_permutations: bool | None = None,
    inherit: bool = True,
    inplace: bool = False,
    optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    progress: ProgressFn | Literal[False] | None = None,
) -> ConversionResult:
    """Put Ghost convs into a model, with the weights of the convs that they replace.

    Args:
        plan: A plan of the model.
        model, calibration, reconstruct, steps, repair, share_permutations: As in
            :meth:`ghost_plugin.ConversionPlan.apply`.
        inherit, inplace, optimizers, progress: The same.

    Returns:
        The converted model, and the plan with errors.

    Raises:
        ValueError: As :meth:`ghost_plugin.ConversionPlan.apply`.
        TypeError: The model is wrapped (DataParallel, compiled, scripted).
    """
    check_root(model)
    _check_options(reconstruct, steps, inherit, calibration is not None)
    found = _optimizers(optimizers or (), inplace, model)
    if _is_converted(plan, model):
        _logger.warning('%s is converted by this plan already; nothing changes', plan.model)
        return ConversionResult(model, plan)
    _check_model(plan, model)
    plan.check_conversions()
    if not inplace:
        model = _copy(plan, model)
    with reporting(progress) as report:
        task = _task(plan, model, repair=repair, report=report)
        results = FitResults()
        if inherit:
            shared = bool(plan.latency) if share_permutations is None else share_permutations
            task, results = _fit(plan, task, calibration, reconstruct, steps, shared)
    pairs = [(task.conv(name), ghost) for name, ghost in task.ghosts.items()]
    for ghost in task.ghosts.values():
        ghost.convert_dense_weights = convert_dense_weights
    model = replace_modules(model, task.ghosts)
    absorb_results(model, task.norms, results)
    update_optimizers(found, pairs)
    if inplace and optimizers is None:
        _logger.warning(
            'optimizers built before hold dense weights: give them, or [], as optimizers='
        )
    if inherit and getattr(model, 'is_init', None) is False:  # of MMEngine
        _logger.warning(
            'init_weights of this %s was not called yet: a Runner calls it when training '
            'begins and then replaces the inherited weights, unless load_from or resume brings '
            'them; call it before the conversion, or set is_init = True',
            plan.model,
        )
    layers = tuple(replace(layer, error=results.errors.get(layer.name)) for layer in plan.layers)
    return ConversionResult(model, replace(plan, layers=layers))


@plain_forward()
@torch.inference_mode(False)
def measure_plan(
    plan: ConversionPlan,
    model: nn.Module,
    batches: list[Any],
    judging: Sequence[Any],
    wanted: Sequence[list[torch.Tensor]],
) -> torch.Tensor:
    """Divergence of the model that a plan gives, which is not made.

    Args:
        plan: A plan of the model.
        model: The original; it is only read.
        batches: Calibration batches.
        judging: Batches to compare outputs for.
        wanted: Floating outputs of the original for them.

    Returns:
        (images,) of the images of ``judging``.
    """
    task = _task(plan, model, repair=True, report=silent)
    task, results = _fit(plan, task, batches, None, 0, bool(plan.latency))
    found = converted_outputs(task, results, judging)
    return torch.cat([divergence(*pair) for pair in zip(found, wanted, strict=True)])


def _task(plan: ConversionPlan, model: nn.Module, *, repair: bool, report: Report) -> FitTask:
    settings = {layer.name: layer.settings for layer in plan.layers if layer.converts}
    norms = {layer.name: layer.norm for layer in plan.layers}
    return FitTask(model, build_ghosts(model, settings, plan.seed), norms, repair, report)


def _check_options(reconstruct: str | None, steps: int, inherit: bool, calibrated: bool) -> None:
    if reconstruct not in (None, *RECONSTRUCT):
        raise ValueError(f'reconstruct must be None or one of {RECONSTRUCT}, got {reconstruct!r}')
    if reconstruct and not inherit:
        raise ValueError(f'reconstruct={reconstruct!r} needs inherited weights to start from')
    if reconstruct and not calibrated:
        raise ValueError(f'reconstruct={reconstruct!r} needs calibration batches')
    if steps < 0:
        raise ValueError(f'steps must be 0 or more, got {steps!r}')


def _optimizers(given: Any, inplace: bool, model: nn.Module) -> list[torch.optim.Optimizer]:
    """One or several optimizers as a list; ValueError where they cannot belong to the model."""
    found = [given] if isinstance(given, torch.optim.Optimizer) else list(given)
    own = {id(parameter) for parameter in model.parameters()}
    for optimizer in found:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f'optimizers= takes optimizers, got {type(optimizer).__name__}')
    if found and not inplace:
        raise ValueError('optimizers= needs inplace=True, a copy has no parameters in them')
    for optimizer in found:
        if not any(id(p) in own for group in optimizer.param_groups for p in group['params']):
            raise ValueError(
                f'optimizers= holds a {type(optimizer).__name__} with no parameter of this '
                f'{type(model).__name__}; give the ones that were built with its parameters'
            )
    return found


def _is_converted(plan: ConversionPlan, model: nn.Module) -> bool:
    """Say if a model is the result of this plan; ValueError if it is that of another plan."""
    modules = dict(model.named_modules())
    ghosts = {name: module for name, module in modules.items() if isinstance(module, GhostConv2d)}
    if not any(layer.name in ghosts for layer in plan.layers):
        return False
    for layer in plan.layers:
        ghost = ghosts.get(layer.name)
        if layer.converts != (ghost is not None) or (
            ghost and not has_settings(ghost, layer.settings)
        ):
            raise ValueError(
                f'this {type(model).__name__} was converted by another plan, which differs at '
                f'{layer.name!r}; apply this one to the original'
            )
    return True


def _check_model(plan: ConversionPlan, model: nn.Module) -> None:
    """Raise ValueError where the plan does not fit the model."""
    for layer in plan.layers:
        if not layer.converts:
            continue
        code = layer.reason if layer.reason in FINAL else ''
        code = code or layer.shape.settings_blocker(layer.settings)
        if code:
            raise ValueError(f'{layer.name!r} cannot be converted ({code}): {REASONS[code]}')
    found = fingerprint(model)
    names = {name for name, _ in model.named_modules(remove_duplicate=False)} | {''}
    if found != plan.fingerprint:
        lost = [layer.name for layer in plan.layers if layer.name not in names][:3]
        raise ValueError(
            f'this plan was made for another {plan.model} (fingerprint {plan.fingerprint}), '
            f'got {type(model).__name__} ({found})'
            + (f' without {lost}' if lost else '')
            + '; build it as the planned one was, with as many classes (--num-classes) and '
            'input channels, or make a plan for it with gp.plan'
        )
    lost = sorted({name for layer in plan.layers for name in (layer.name, layer.norm)} - names)
    if lost:
        raise ValueError(
            f'{type(model).__name__} has no module {lost[0]!r}; decision, ratio, dw_size, '
            'cheap and group_size of a row may be edited, not its name or norm'
        )


def _copy(plan: ConversionPlan, model: nn.Module) -> nn.Module:
    """A copy; convs that will be replaced are the original's own, as they are only read."""
    check_forwards(model)
    convs = [model.get_submodule(layer.name) for layer in plan.layers if layer.converts]
    return deepcopy_detached(
        model,
        {id(conv): conv for conv in convs},
        instead='use inplace=True, which copies nothing',
    )


def _fit(
    plan: ConversionPlan,
    task: FitTask,
    calibration: Iterable[Any] | None,
    reconstruct: str | None,
    steps: int,
    shared: bool,
) -> tuple[FitTask, FitResults]:
    """Fit the Ghosts of a task, or of one like it; the model is only read."""
    model = task.model
    if any(parameter.is_meta for parameter in model.parameters()):
        if calibration is not None:
            raise ValueError('a model on the meta device has no weights to calibrate')
        return task, FitResults()
    shortcuts = _shortcut_ghosts(task) if shared else []
    if calibration is None:
        return task, fit_from_weights(assign_jointly(task, shortcuts))
    batches = as_batches(calibration, model)
    task = assign_jointly(task, shortcuts, batches)
    views = num_views(batches) if reconstruct == 'network' else 0
    extended = with_views(batches, views, plan.seed)
    results = _fit_on_batches(task, extended, reconstruct, steps, plan.seed)
    if few_images(batches):
        settings = {layer.name: layer.settings for layer in plan.layers if layer.converts}
        plain = FitTask(model, build_ghosts(model, settings, plan.seed), task.norms)
        without_images = fit_from_weights(assign_jointly(plain, shortcuts))
        if misled(task, results, plain, batches):
            _logger.warning(
                'too few calibration images: fitted to them, the converted %s is hardly '
                'nearer to the original, even on these very images, than without them; so '
                'it was converted without. Give more images, 64 or so',
                plan.model,
            )
            return plain, without_images
    if reconstruct == 'network':
        net = replace_modules(deepcopy_detached(model), task.ghosts)
        absorb_results(net, task.norms, results)
        reconstruct_network(model, net, batches, steps=steps, seed=plan.seed, report=task.report)
        results = replace(results, network=net.state_dict())
    return task, results


def _shortcut_ghosts(task: FitTask) -> list[list[str]]:
    """Names of Ghosts that shall have one permutation, as far as a copy of the model shows it."""
    try:
        net = deepcopy_detached(task.model, share=True)
        return shortcut_ghosts(replace_modules(net, task.ghosts).eval())
    except Exception:  # a model that is changed in place need not allow a copy
        return []


def _fit_on_batches(
    task: FitTask, batches: list[Any], reconstruct: str | None, steps: int, seed: int
) -> FitResults:
    """Fit the Ghosts of ``task`` to batches."""
    results = FitResults()
    if not can_concat(batches):
        if reconstruct:
            raise ValueError('reconstruct needs calibration batches of images of one size')
        _logger.warning('the calibration batches do not fit together; no fit on converted inputs')
    elif reconstruct:
        run = reconstruct_layers if reconstruct == 'layer' else reconstruct_blocks
        results = run(task, batches, steps, seed)
    else:
        results = fit_sequentially(task, batches)
    return initialize_others(task, results, batches)
