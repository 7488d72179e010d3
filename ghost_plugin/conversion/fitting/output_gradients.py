"""How maps inside a network show in its output: gradients of random projections of the output."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...utils.modules import (
    as_copies,
    call_model,
    eval_mode,
    frozen_parameters,
    removing_hooks,
    tensors_in,
)
from .paired_forward import batch_size, rebatch, slice_batch

_logger = logging.getLogger(__name__)
LOOKED, PART = 256, 4  # pictures that covariances look at, at the most, and at a time

GradientHandler = Callable[[torch.Tensor], None]
# Takes a module, its inputs and its maps; gives what is called with each gradient of the maps.
GradientProbe = Callable[[nn.Module, tuple, torch.Tensor], GradientHandler]


class UnconnectedError(ValueError):
    """The output does not depend on the maps by gradients."""


def backprop_projections(
    model: nn.Module, listeners: Mapping[str, GradientProbe], batches: Iterable[Any], draws: int
) -> None:
    """Run a network on batches and tell what maps inside do to it.

    Args:
        model: It is left as it was, and no parameter gets a gradient.
        listeners: By the names of modules; outputs that are not one tensor are not listened to.
        batches: To call the model with, not many pictures at a time.
        draws: Random projections of each output, whose gradients the listeners get.

    Raises:
        UnconnectedError: No output asks for a gradient.
    """
    heard = False
    handles = [
        model.get_submodule(name).register_forward_hook(_hook(listener))
        for name, listener in listeners.items()
    ]
    with removing_hooks(*handles), eval_mode(model), frozen_parameters(model):
        for batch in batches:
            args, kwargs = as_copies(batch)
            # Networks that are not trained any more may write into maps that gradients need.
            with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
                with Gradients():
                    leaves = _differentiable(model(*args, **kwargs))
                for draw in range(draws if leaves else 0):  # a detector may find nothing
                    _projection(leaves).backward(retain_graph=draw < draws - 1)
            heard = heard or bool(leaves)
    with eval_mode(model):
        call_model(model, batch)  # so that no map a network keeps holds the graph
    if not heard:
        raise UnconnectedError('the output is empty or does not depend on the convs by gradients')


class Gradients(TorchFunctionMode):
    """Parts that a network runs without gradients, such as a frozen backbone, have them, too."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled and args == (False,):
            return None
        return func(*args, **(kwargs or {}))


def covariances(
    model: nn.Module, names: Collection[str], batches: Sequence[Any], seed: int
) -> dict[str, torch.Tensor]:
    """How the channels of some modules' maps show together in a network's output.

    Args:
        model: The network.
        names: Of modules inside.
        batches: Pictures of one size, some of which are looked at.
        seed: Of projections.

    Returns:
        By name (C, C) E[g g^T] over pixels, with the gradients g of projections of the output, in
        units of its mean diagonal; only of modules that give (N, C, H, W) and have gradients.
        C positions of equal channels stand beside the gradients', so that a few images do not
        make channels worthless that they never show. Empty, with a warning, where the network
        cannot be differentiated.
    """
    sums: dict[str, torch.Tensor] = {}
    positions: Counter[str] = Counter()
    if not names:
        return sums
    step = -(-sum(map(batch_size, batches)) // LOOKED)
    chosen = (slice_batch(few, slice(0, 1)) for few in rebatch(batches, step))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            listeners = {name: _adder(name, sums, positions) for name in names}
            backprop_projections(model, listeners, rebatch(chosen, PART), 1)
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


def _adder(name: str, sums: dict[str, torch.Tensor], positions: Counter[str]) -> GradientProbe:
    def listener(module: nn.Module, inputs: tuple, maps: torch.Tensor) -> GradientHandler:
        def add(gradient: torch.Tensor) -> None:
            if gradient.ndim == 4:
                flat = gradient.float().transpose(0, 1).flatten(1)
                sums[name] = sums.get(name, 0) + flat @ flat.T
                positions[name] += flat.shape[1]

        return add

    return listener


def _hook(listener: GradientProbe) -> Callable:
    def hook(module: nn.Module, inputs: tuple, maps: Any) -> Any:
        # Functions of autograd that run modules switch gradients off, and run them again in the
        # backward pass, with gradients.
        if not isinstance(maps, torch.Tensor) or not torch.is_grad_enabled():
            return maps
        with torch._C.DisableTorchFunction():  # listeners may go without gradients
            heard = listener(module, inputs, maps)
        maps = maps if maps.requires_grad else maps.requires_grad_().clone()
        maps.register_hook(heard)
        return maps

    return hook


def _differentiable(output: Any) -> list[torch.Tensor]:
    """The output tensors that hold something and ask for a gradient."""
    return [leaf for leaf in tensors_in(output) if leaf.requires_grad and leaf.numel()]


def _projection(leaves: list[torch.Tensor]) -> torch.Tensor:
    """A random projection of output tensors, each in units of its own size."""
    total = 0.0
    for leaf in leaves:
        scale = leaf.detach().float().square().mean().sqrt().clamp_min(1e-12)
        share = leaf[0].numel() ** 0.5 if leaf.ndim > 1 else 1.0
        total = total + (torch.randn_like(leaf) * leaf).sum() / (scale * share)
    return total
