"""Parameters, multiply-adds, latency: the only place that counts or times.

One multiply-add counts one, and only convolutions and linear layers count, as in the papers:
norms, activations, pooling and additions do not.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .utils import torch_compat
from .utils.modules import call_model, eval_mode, frozen_parameters, plain_forward, removing_hooks

# What convolutions and linear layers become; FlopCounterMode counts two per multiply-add.
_COUNTED = frozenset({'convolution', '_convolution', 'convolution_overrideable', 'mm', 'addmm'})

# Seconds of rest and untimed calls in front of a timed one. In another runtime's wake OpenVINO took
# 3.1 ms with three such calls and no rest, 2.0 with both, as when it is alone; ONNX Runtime twice
# its time without the calls.
REST, LEAD = 0.05, 3

TURN = 20.0  # milliseconds of a turn of short calls


@dataclass(frozen=True)
class ModuleCost:
    """Cost of one module, without that of its children."""

    name: str
    kind: str
    params: int
    macs: int


@dataclass(frozen=True)
class Complexity:
    """Cost of a model for one input.

    Attributes:
        params: Parameters, each shared one once.
        macs: Multiply-adds of convolutions and linear layers, for the whole input batch.
        rows: The modules that hold multiply-adds, in the order in which they stand in the model.
    """

    params: int
    macs: int
    rows: tuple[ModuleCost, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return asdict(self)


@plain_forward()
def count(model: nn.Module, example_input: Any) -> Complexity:
    """Count parameters and multiply-adds of one forward pass in eval mode.

    Args:
        model: Any module; it is left as it was.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments, on the
            model's device.

    Returns:
        Totals and one row per module. A module that runs twice counts twice.
    """
    counter = FlopCounterMode(display=False)
    seen = torch.inference_mode(torch.is_inference_mode_enabled() and torch_compat.COUNTS_INFERENCE)
    # The counter stumbles over views that ask for gradients.
    with (
        seen,
        eval_mode(model),
        frozen_parameters(model),
        counter,
        _spending(model, counter) as own,
    ):
        call_model(model, example_input)
    params = sum(p.numel() for p in model.parameters())
    rows = (
        ModuleCost(name, type(module).__name__, _held(module), own[module])
        for name, module in model.named_modules()
        if own[module] > 0
    )
    return Complexity(params, _macs(counter), tuple(rows))


def _held(module: nn.Module) -> int:
    """Parameters of a module without those of its children."""
    return sum(p.numel() for p in module.parameters(recurse=False))


@contextmanager
def _spending(model: nn.Module, counter: FlopCounterMode) -> Iterator[dict[nn.Module, int]]:
    """Multiply-adds of every module, without what modules within it spend.

    The counter's own names of modules are not those of older versions of torch.
    """
    own: dict[nn.Module, int] = defaultdict(int)
    running: list[list[int]] = []  # modules that are in a call: spent before it, and within it

    def enter(module: nn.Module, inputs: tuple) -> None:
        running.append([_macs(counter), 0])

    def leave(module: nn.Module, inputs: tuple, output: Any) -> None:
        before, within = running.pop()
        spent = _macs(counter) - before
        own[module] += spent - within
        if running:
            running[-1][1] += spent

    watched = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]  # no hooks
    with (
        removing_hooks(*(m.register_forward_pre_hook(enter) for m in watched)),
        removing_hooks(*(m.register_forward_hook(leave, always_call=True) for m in watched)),
    ):
        yield own


def _macs(counter: FlopCounterMode) -> int:
    """Multiply-adds that were counted so far."""
    found = counter.flop_counts['Global'].items()
    return sum(flops for op, flops in found if str(op).split('.')[-1] in _COUNTED) // 2


@dataclass(frozen=True)
class Timing:
    """Time of one call.

    Attributes:
        name: What was timed.
        median: Milliseconds.
        low, high: First and third quartile, milliseconds.
        runs: Calls behind these figures.
    """

    name: str
    median: float
    low: float
    high: float
    runs: int


def time_together(
    tasks: Mapping[str, Callable[[], Any]],
    rounds: int = 30,
    warmup: int = 5,
    apart: bool = False,
    least: float = 0,
) -> list[Timing]:
    """Time several calls in turns, so that a machine that slows down slows all of them.

    Args:
        tasks: Calls without arguments, by name.
        rounds: Turns of each.
        warmup: Untimed calls of each before that.
        apart: Whether to rest and call a task untimed in front of each turn: the threads of
            another runtime go on spinning for a while after its own calls and take its cores.
        least: Milliseconds that a turn lasts; it is of one call without. Short calls need it:
            behind a rest up to ten of them take twice their time.

    Returns:
        One :class:`Timing` per task, in their order.

    Raises:
        ValueError: There is no turn.
    """
    if rounds < 1:
        raise ValueError(f'rounds must be 1 or more, got {rounds!r}')
    for task in tasks.values():
        for _ in range(warmup):
            task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for turn in range(rounds):
        # Every task is as often first, so that none always runs in another one's wake.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if apart:
                _come_to_rest(tasks[name])
            times[name] += _turn(tasks[name], least)
    return [_timing(name, values) for name, values in times.items()]


def _turn(task: Callable[[], Any], least: float) -> list[float]:
    times = [_milliseconds(task)]
    while sum(times) < least:
        times.append(_milliseconds(task))
    return times


def _come_to_rest(task: Callable[[], Any]) -> None:
    time.sleep(REST)
    for _ in range(LEAD):
        task()


def _milliseconds(task: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    task()
    _synchronize()
    return (time.perf_counter() - start) * 1000


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timing(name: str, values: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return Timing(name, median, low, high, len(values))
