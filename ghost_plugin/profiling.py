"""Parameters, multiply-adds and latency; the only module that counts or times.

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

# Operators of convolutions and linear layers; FlopCounterMode counts two per multiply-add.
_COUNTED = frozenset({'convolution', '_convolution', 'convolution_overrideable', 'mm', 'addmm'})

# Pause and untimed calls before a timed one. After calls of another runtime OpenVINO took 3.1 ms
# with three such calls and no pause, 2.0 ms with both, as when it runs alone; ONNX Runtime took
# twice its time without the calls.
REST_SECONDS, NUM_LEAD_CALLS = 0.05, 3

MIN_ROUND_MS = 20.0  # minimum length of a round of short calls


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
        rows: The modules that have multiply-adds, in the order of the model.
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
    # The counter cannot handle views that require gradients.
    with (
        seen,
        eval_mode(model),
        frozen_parameters(model),
        counter,
        _macs_per_module(model, counter) as own,
    ):
        call_model(model, example_input)
    params = sum(p.numel() for p in model.parameters())
    rows = (
        ModuleCost(
            name=name,
            kind=type(module).__name__,
            params=sum(p.numel() for p in module.parameters(recurse=False)),
            macs=own[module],
        )
        for name, module in model.named_modules()
        if own[module] > 0
    )
    return Complexity(params, _macs(counter), tuple(rows))


@contextmanager
def _macs_per_module(model: nn.Module, counter: FlopCounterMode) -> Iterator[dict[nn.Module, int]]:
    """Multiply-adds of every module without those of the modules inside it.

    The module names of the counter itself differ between versions of torch.
    """
    own: dict[nn.Module, int] = defaultdict(int)
    running: list[list[int]] = []  # per module that is running: macs before it, and inside it

    def enter(*_: Any) -> None:
        running.append([_macs(counter), 0])

    def leave(module: nn.Module, *_: Any) -> None:
        before, inside = running.pop()
        total = _macs(counter) - before
        own[module] += total - inside
        if running:
            running[-1][1] += total

    watched = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]  # no hooks
    with (
        removing_hooks(*(m.register_forward_pre_hook(enter) for m in watched)),
        removing_hooks(*(m.register_forward_hook(leave, always_call=True) for m in watched)),
    ):
        yield own


def _macs(counter: FlopCounterMode) -> int:
    """Multiply-adds counted so far."""
    found = counter.flop_counts['Global'].items()
    return sum(flops for op, flops in found if str(op).split('.')[-1] in _COUNTED) // 2


@dataclass(frozen=True)
class Timing:
    """Time of one call.

    Attributes:
        name: Name of the task.
        median: Milliseconds.
        low, high: First and third quartile, milliseconds.
        runs: Number of timed calls.
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
    rest: bool = False,
    min_ms: float = 0,
) -> list[Timing]:
    """Time several calls in alternation, so that a machine that slows down slows all of them.

    Args:
        tasks: Calls without arguments, by name.
        rounds: Timed rounds of each task.
        warmup: Untimed calls of each task before that.
        rest: Pause and call a task untimed before each round. Threads of another runtime go on
            spinning for a while after its calls and take its cores.
        min_ms: Minimum milliseconds of a round; 0 makes it one call. Short calls need it: after a
            pause up to ten of them take twice their time.

    Returns:
        One :class:`Timing` per task, in their order.

    Raises:
        ValueError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f'rounds must be 1 or more, got {rounds!r}')
    for task in tasks.values():
        for _ in range(warmup):
            task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for index in range(rounds):
        # Every task is first equally often, so that none always follows the same other task.
        for name in names[index % len(names) :] + names[: index % len(names)]:
            if rest:
                time.sleep(REST_SECONDS)
                for _ in range(NUM_LEAD_CALLS):
                    tasks[name]()
            times[name] += _round(tasks[name], min_ms)
    return [_timing(name, values) for name, values in times.items()]


def _round(task: Callable[[], Any], min_ms: float) -> list[float]:
    times = [_milliseconds(task)]
    while sum(times) < min_ms:
        times.append(_milliseconds(task))
    return times


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
