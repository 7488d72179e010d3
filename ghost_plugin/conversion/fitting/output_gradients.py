"""Effects of activations on a model's output: gradients of random projections of the output."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...utils.modules import (
    as_copies,
    call_model,
    eval_mode,
    frozen_parameters,
    removing_hooks,
    tensors_in,
)
from ..progress import Report, silent, tracked
from .batches import batch_size, rebatch, slice_batch

_logger = logging.getLogger(__name__)
MAX_IMAGES, IMAGES_PER_CALL = 256, 4  # of covariances, and at a time

# Called with each gradient of a module's output.
GradientHandler = Callable[[torch.Tensor], None]
# Takes a module, its inputs and its output.
GradientProbe = Callable[[nn.Module, tuple[Any, ...], torch.Tensor], GradientHandler]


class UnconnectedError(ValueError):
    """The output does not depend on the activations by gradients."""


def backprop_projections(
    model: nn.Module, probes: Mapping[str, GradientProbe], batches: Iterable[Any], draws: int
) -> None:
    """Call probes with gradients of random projections of a model's output.

    Args:
        model: It is left as it was, and no parameter gets a gradient.
        probes: By the names of modules; called at each call of a module that gives one tensor.
        batches: To call the model with, a few images at a time.
        draws: Random projections of each output.

    Raises:
        UnconnectedError: No output asks for a gradient.
    """
    connected = False
    handles = [
        model.get_submodule(name).register_forward_hook(_hook(probe))
        for name, probe in probes.items()
    ]
    with removing_hooks(*handles), eval_mode(model), frozen_parameters(model):
        for batch in batches:
            args, kwargs = as_copies(batch)
            # In eval mode networks may write into activations that gradients need.
            with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
                with gradients_everywhere(model):
                    leaves = tensors_in(model(*args, **kwargs))
                outputs = [leaf for leaf in leaves if leaf.requires_grad and leaf.numel()]
                for draw in range(draws if outputs else 0):  # a detector may find nothing
                    torch.autograd.backward(_projection(outputs), retain_graph=draw < draws - 1)
            connected = connected or bool(outputs)
    with eval_mode(model):
        # So that no activation a network keeps holds the graph.
        call_model(model, slice_batch(batch, slice(0, 1)))
    if not connected:
        raise UnconnectedError('the output is empty or does not depend on the convs by gradients')


@contextmanager
def gradients_everywhere(model: nn.Module) -> Iterator[None]:
    """Record gradients also in parts that a model runs under ``torch.no_grad``.

    A frozen backbone is such a part. Each module switches gradients on when it is called; the
    model's own ``torch.no_grad`` switches them back when it ends.

    Args:
        model: The model that runs in the block.
    """

    def _hook(module: nn.Module, inputs: Any) -> None:
        torch.set_grad_enabled(True)

    parts = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    before = torch.is_grad_enabled()
    try:
        with removing_hooks(*(part.register_forward_pre_hook(_hook) for part in parts)):
            yield
    finally:
        torch.set_grad_enabled(before)


def channel_metrics(
    model: nn.Module,
    names: Collection[str],
    batches: Sequence[Any],
    seed: int,
    report: Report = silent,
) -> dict[str, torch.Tensor]:
    """Covariances of the output's gradients with respect to the channels of some modules.

    Args:
        model: The model.
        names: Of modules inside.
        batches: Batches whose images have one size; some of these are used.
        seed: Of projections.
        report: Gets the calls of the model that are done.

    Returns:
        By name (C, C) E[g g^T] over positions, with the gradients g of projections of the output,
        in units of its mean diagonal; only of modules that give (N, C, H, W) and have gradients.
        C positions of equal channels count beside the gradients', so that a few images do not
        make channels worthless that they never show. Empty, with a warning, if the model cannot
        be differentiated.
    """
    sums: dict[str, torch.Tensor] = {}
    positions: Counter[str] = Counter()
    if not names:
        return sums
    images = sum(map(batch_size, batches))
    step = -(-images // MAX_IMAGES)
    calls = -(-images // step // IMAGES_PER_CALL)
    chosen = (slice_batch(few, slice(0, 1)) for few in rebatch(batches, step))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            probes = {name: _covariance_probe(name, sums, positions) for name in names}
            parts = tracked(rebatch(chosen, IMAGES_PER_CALL), calls, report, 'gradients')
            backprop_projections(model, probes, parts, 1)
        except (UnconnectedError, RuntimeError) as error:
            _logger.warning('all channels of blocks count alike, for want of gradients: %s', error)
            return {}
    scales = {name: total.diagonal().mean() for name, total in sums.items()}
    return {
        name: torch.lerp(
            sums[name] / scale,
            torch.eye(len(sums[name])).to(sums[name]),
            len(sums[name]) / (len(sums[name]) + positions[name]),
        )
        for name, scale in scales.items()
        if scale > 0 and scale.isfinite()
    }


def _covariance_probe(
    name: str, sums: dict[str, torch.Tensor], positions: Counter[str]
) -> GradientProbe:
    def _probe(module: nn.Module, inputs: tuple[Any, ...], maps: torch.Tensor) -> GradientHandler:
        def add(gradient: torch.Tensor) -> None:
            if gradient.ndim == 4:
                flat = gradient.float().transpose(0, 1).flatten(1)
                sums[name] = sums.get(name, 0) + flat @ flat.T
                positions[name] += flat.shape[1]

        return add

    return _probe


def _hook(probe: GradientProbe) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def _probing(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, torch.Tensor):
            return output
        handler = probe(module, inputs, output)
        output = output if output.requires_grad else output.requires_grad_().clone()
        output.register_hook(handler)
        return output

    return _probing


def _projection(outputs: list[torch.Tensor]) -> torch.Tensor:
    """A random projection of output tensors, each in units of its own size."""
    terms = []
    for leaf in outputs:
        scale = leaf.detach().float().square().mean().sqrt().clamp_min(1e-12)
        share = leaf[0].numel() ** 0.5 if leaf.ndim > 1 else 1.0
        terms.append((torch.randn_like(leaf) * leaf).sum() / (scale * share))
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
