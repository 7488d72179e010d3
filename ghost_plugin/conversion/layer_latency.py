"""Milliseconds of convs and their Ghosts, alone and in the network, permuted as inherited ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..graph.channel_permutation import absorb_permutations, shortcut_ghosts
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
from .plan import ConversionPlan, LayerPlan
from .progress import Report, silent, tracked
from .surgery import build_ghost, build_ghosts, check_forwards, replace_modules
from .variants import Variant

NETWORK_ROUNDS, LAYER_ROUNDS = 15, 6  # timed rounds of a network, of one conv
LAYER_ROUND_MS = 8.0  # minimum length of a round of one conv
WARMUP = 3  # untimed calls of each

# Takes a module and its example input; gives a call without arguments.
PrepareFn = Callable[[nn.Module, Any], Callable[[], Any]]


def prepare_eager(module: nn.Module, example_input: Any) -> Callable[[], Any]:
    """Prepare a call of a module as it is, with the same values each time.

    Args:
        module: A module in eval mode.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments.
    """
    args, kwargs = as_arguments(example_input)
    call = preserving_inputs(module)

    def run() -> None:
        with torch.no_grad():
            call(*args, **kwargs)

    return run


# The package registers the backends of ``deploy`` here, which conversion does not import.
LATENCY_BACKENDS: dict[str, PrepareFn] = {'eager': prepare_eager}


def latency_backend_fn(backend: str | PrepareFn) -> PrepareFn:
    """Return the function of a backend.

    Raises:
        ValueError: No such backend.
    """
    if not isinstance(backend, str):
        return backend
    if backend not in LATENCY_BACKENDS:
        raise ValueError(
            f'latency_backend must be one of {list(LATENCY_BACKENDS)}, got {backend!r}'
        )
    return LATENCY_BACKENDS[backend]


def measure_latencies(
    nets: Mapping[str, nn.Module],
    example_input: Any,
    prepare: PrepareFn,
    rounds: int = NETWORK_ROUNDS,
    min_ms: float = MIN_ROUND_MS,
) -> dict[str, float]:
    """Measure milliseconds of several modules, which take turns.

    First quartiles, because other processes only ever add time.

    Args:
        nets: Modules by name.
        example_input: Input of all.
        prepare: Function of the backend.
        rounds: Timed rounds.
        min_ms: Minimum length of a round.
    """
    tasks = {
        name: prepare(deepcopy_detached(net, share=True).eval(), example_input)
        for name, net in nets.items()
    }
    timings = time_together(tasks, rounds, WARMUP, prepare is not prepare_eager, min_ms)
    return {t.name: t.low for t in timings}


def converted_copy(model: nn.Module, plan: ConversionPlan) -> nn.Module:
    """Build the plan's network with fresh weights, permuted as inheritance would leave them.

    Args:
        model: The original.
        plan: A plan that converts at least one conv.
    """
    check_forwards(model)
    net = deepcopy_detached(model, share=True)
    settings = {layer.name: layer.settings for layer in plan.layers if layer.converts}
    ghosts = build_ghosts(net, settings, plan.seed)
    return _with_ghosts(net, ghosts)


def _with_ghosts(net: nn.Module, ghosts: Mapping[str, GhostConv2d]) -> nn.Module:
    """Put fresh Ghosts into a network, in place, with permutations as fitted ones have them."""
    net = replace_modules(net, ghosts).eval()
    _randomize_permutations(ghosts.values())
    for first, *others in shortcut_ghosts(net):
        for name in others:
            ghosts[name].order = ghosts[first].order
    return net


def _randomize_permutations(ghosts: Iterable[GhostConv2d]) -> None:
    """Give each a permutation; fresh ones change nothing, so runtimes leave them out."""
    random = torch.Generator().manual_seed(0)
    for ghost in ghosts:
        permutation = torch.randperm(ghost.num_computed(), generator=random)
        ghost.order = permutation[: ghost.out_channels]


def time_layers(
    model: nn.Module,
    example_input: Any,
    layers: Sequence[LayerPlan],
    prepare: PrepareFn,
    report: Report = silent,
) -> dict[str, dict[str, float]]:
    """Measure the milliseconds of each conv and of its Ghosts, for all its calls.

    Args:
        model: The original.
        example_input: Its input.
        layers: Layers with scores.
        prepare: Function of the backend.
        report: Gets the layers that are done.

    Returns:
        Milliseconds by name and key of the variant; ``'1'`` is the conv as it is.
    """
    inputs = _inputs(model, example_input, [layer.name for layer in layers])
    absorbed = set() if prepare is prepare_eager else _absorbed(model, layers)
    known: dict[str, dict[str, float]] = {}
    found = {}
    for layer in tracked(layers, len(layers), report, 'latencies'):
        conv: Any = model.get_submodule(layer.name)
        x = inputs[layer.name]
        variants = map(Variant.from_key, layer.scores)
        ghosts = {variant.key: variant.settings(layer.settings) for variant in variants}
        # A conv's text has all its settings, and two of the same take the same time.
        norm = model.get_submodule(layer.norm) if layer.norm else nn.Identity()
        kind = repr((conv, norm, x.shape, x.stride(), x.dtype, ghosts, layer.name in absorbed))
        if kind not in known:
            singles = {
                key: _single(conv, own, layer.name in absorbed) for key, own in ghosts.items()
            }
            # As in most networks: a dense conv takes in what follows, a Ghost only in part.
            nets = {
                key: nn.Sequential(single, norm, nn.ReLU()).eval()
                for key, single in {'1': conv, **singles}.items()
            }
            known[kind] = measure_latencies(nets, x, prepare, LAYER_ROUNDS, LAYER_ROUND_MS)
        with torch.no_grad():
            pixels = conv(x)[0, 0].numel()
        calls = layer.shape.pixels / max(1, pixels)
        found[layer.name] = {ratio: time * calls for ratio, time in known[kind].items()}
    return found


def _inputs(model: nn.Module, example_input: Any, names: Iterable[str]) -> dict[str, torch.Tensor]:
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, maps: inputs.update({name: given[0].detach().clone()})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with removing_hooks(*handles), eval_mode(model):
        call_model(model, example_input)
    return inputs


def _absorbed(model: nn.Module, layers: Sequence[LayerPlan]) -> set[str]:
    """Convs whose Ghosts lose their permutation in a fused network with all of them converted."""
    net, ghosts = _alike(model, layers)
    absorb_permutations(net)
    return {name for name, ghost in ghosts.items() if ghost.order is None}


def shortcut_layers(model: nn.Module, layers: Sequence[LayerPlan]) -> list[list[str]]:
    """Find convs whose outputs a shortcut adds, which can have one permutation if all are alike.

    Args:
        model: The original.
        layers: Layers that may be converted.

    Returns:
        Their names, two or more in each list.
    """
    return shortcut_ghosts(_alike(model, layers)[0])


def _alike(
    model: nn.Module, layers: Sequence[LayerPlan]
) -> tuple[nn.Module, dict[str, GhostConv2d]]:
    """A copy with Ghosts of one setting, which every conv allows, and these by name."""
    net = deepcopy_detached(model, share=True)
    common = {'ratio': 2, 'group_size': 1}
    settings = {layer.name: {**layer.settings, **common} for layer in layers}
    ghosts = build_ghosts(net, settings, seed=0)
    return _with_ghosts(net, ghosts), ghosts


def _single(conv: nn.Conv2d, settings: Mapping[str, Any], absorbed: bool) -> GhostConv2d:
    ghost = build_ghost(conv, settings)
    # Where more channels are computed than returned, a permutation selects them and stays.
    if absorbed and ghost.num_computed() == ghost.out_channels:
        ghost.order = None
    else:
        _randomize_permutations([ghost])
    return ghost
