"""Milliseconds of convs and their Ghosts, alone and in the network, as inheritance leaves them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..graph.channel_permutation import absorb_permutations
from ..layers.ghost import GhostConv2d
from ..profiling import MIN_ROUND_MS, time_together
from ..utils.modules import (
    as_arguments,
    call_model,
    deepcopy_detached,
    eval_mode,
    preserving_inputs,
    removing_hooks,
)
from .layer_plan import LayerPlan
from .plan import ConversionPlan, check_forwards
from .surgery import build_ghost, build_ghosts, replace_modules

WHOLE, SINGLE = 15, 3  # turns of a network, of one conv
WARMUP = 3  # untimed calls of each

# Takes a module and what to call it with; gives a call without arguments.
Ready = Callable[[nn.Module, Any], Callable[[], Any]]


def eager(module: nn.Module, example_input: Any) -> Callable[[], Any]:
    """A call of a module as it is, with the same values each time."""
    args, kwargs = as_arguments(example_input)
    kept = preserving_inputs(module)

    def run() -> None:
        with torch.no_grad():
            kept(*args, **kwargs)

    return run


def measure(
    nets: Mapping[str, nn.Module],
    example_input: Any,
    ready: Ready,
    turns: int = WHOLE,
) -> dict[str, float]:
    """Median milliseconds of each, in turns."""
    tasks = {
        name: ready(deepcopy_detached(net, share=True).eval(), example_input)
        for name, net in nets.items()
    }
    timings = time_together(tasks, turns, WARMUP, ready is not eager, MIN_ROUND_MS)
    return {t.name: t.median for t in timings}


def converted(model: nn.Module, plan: ConversionPlan) -> nn.Module:
    """The plan's network with fresh weights, and with orders as inheritance would leave them."""
    check_forwards(model)
    net = plan.apply(
        deepcopy_detached(model, share=True), inherit=False, inplace=True, optimizers=[]
    )
    _shuffle(net.get_submodule(row.name) for row in plan.rows if row.converts)
    return net


def _shuffle(ghosts: Iterable[GhostConv2d]) -> None:
    """Give each an order of its own; fresh ones change nothing, so runtimes leave them out."""
    random = torch.Generator().manual_seed(0)
    for ghost in ghosts:
        ghost.order = torch.randperm(ghost.num_computed(), generator=random)[: ghost.out_channels]


def time_rows(model: nn.Module, example_input: Any, rows: list[LayerPlan], ready: Ready) -> None:
    """Fill in ``latencies``: milliseconds of each conv and of its Ghosts, for all its calls."""
    inputs = _inputs(model, example_input, [row.name for row in rows])
    settled = set() if ready is eager else _settled(model, rows)
    known: dict[str, dict[str, float]] = {}
    for row in rows:
        conv, x = model.get_submodule(row.name), inputs[row.name]
        ghosts = {ratio: {**row.settings, 'ratio': float(ratio)} for ratio in row.scores}
        # A conv's text has all its settings, and two of the same take the same time.
        kind = repr((conv, x.shape, x.stride(), x.dtype, ghosts, row.name in settled))
        if kind not in known:
            nets = {r: _single(conv, own, row.name in settled) for r, own in ghosts.items()}
            known[kind] = measure({'1': conv, **nets}, x, ready, SINGLE)
        calls = row.shape.pixels / max(1, _pixels(conv, x))
        row.latencies = {ratio: time * calls for ratio, time in known[kind].items()}


def _inputs(model: nn.Module, example_input: Any, names: Iterable[str]) -> dict[str, torch.Tensor]:
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable:
        return lambda module, given, maps: inputs.update({name: given[0].detach().clone()})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with removing_hooks(*handles), eval_mode(model):
        call_model(model, example_input)
    return inputs


def _settled(model: nn.Module, rows: list[LayerPlan]) -> set[str]:
    """Convs whose Ghosts lose their order in a network that is fused, all of them converted."""
    net = deepcopy_detached(model, share=True)
    ghosts = build_ghosts(net, {row.name: {**row.settings, 'ratio': 2} for row in rows}, seed=0)
    _shuffle(ghosts.values())
    absorb_permutations(replace_modules(net, ghosts))
    return {name for name, ghost in ghosts.items() if ghost.order is None}


def _single(conv: nn.Module, settings: Mapping[str, Any], settled: bool) -> GhostConv2d:
    ghost = build_ghost(conv, settings)
    # Where more maps are made than taken, an order picks them and stays.
    if settled and ghost.num_computed() == ghost.out_channels:
        ghost.order = None
    else:
        _shuffle([ghost])
    return ghost


def _pixels(conv: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad():
        return conv(x)[0, 0].numel()
