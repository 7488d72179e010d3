"""Parameters, multiply-adds, latency: the only place that counts or times.

One multiply-add counts one, and only convolutions and linear layers count, as in the papers:
norms, activations, pooling and additions do not.
"""

import copy
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from . import _torch

# What convolutions and linear layers become; FlopCounterMode counts two per multiply-add.
_COUNTED = frozenset({'convolution', '_convolution', 'convolution_overrideable', 'mm', 'addmm'})
# Seconds of rest and untimed calls in front of a timed one. In another runtime's wake OpenVINO took
# 3.1 ms with three such calls and no rest, 2.0 with both, as when it is alone; ONNX Runtime twice
# its time without the calls.
REST, LEAD = 0.05, 3
TURN = 20.0  # milliseconds of a turn of short calls


@dataclass(frozen=True)
class Row:
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
    rows: tuple[Row, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return asdict(self)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    """Remove the handles of hooks when the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Replaced:
    """Replaces an attribute of a class or module while any thread is within.

    Args:
        owner, name: The attribute.
        new: What it is meanwhile.
    """

    def __init__(self, owner: Any, name: str, new: Any) -> None:
        self.owner, self.name, self.new = owner, name, new
        self.lock, self.users, self.old = threading.Lock(), 0, {}

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                own = vars(self.owner)
                self.old = {self.name: own[self.name]} if self.name in own else {}
                setattr(self.owner, self.name, self.new)
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                delattr(self.owner, self.name)
                for name, value in self.old.items():
                    setattr(self.owner, name, value)


def _run_once(function: Callable, preserve_rng_state: bool, *args: Any) -> Any:
    return function(*args)


# Both ways of torch.utils.checkpoint, wherever the function itself was imported to. The re-entrant
# one hides what is inside from gradients, and either would run the hooks inside a second time.
_PLAIN_CHECKPOINTS = (
    _Replaced(checkpoint.CheckpointFunction, 'apply', staticmethod(_run_once)),
    _Replaced(
        checkpoint,
        '_checkpoint_without_reentrant_generator',
        lambda *args, **kwargs: iter((None,)),
    ),
)


@contextmanager
def own_passes() -> Iterator[None]:
    """Forward passes of this package's own: in full precision, checkpointed parts as plain ones.

    Every entry point that runs a model runs it so. Without it autocast would round what is fitted
    and compared, and gradient checkpointing would hide parts of the model.
    """
    with _torch.full_precision(), _PLAIN_CHECKPOINTS[0], _PLAIN_CHECKPOINTS[1]:
        yield


def copied(
    model: nn.Module,
    memo: Mapping[int, Any] | None = None,
    *,
    share: bool = False,
    instead: str = 'set it to None meanwhile, or give its class a __deepcopy__',
) -> nn.Module:
    """A deep copy, also of a model that keeps what it computed with gradients in its last call.

    Args:
        model: To be copied.
        memo: What stands for a part of it, by the part's id.
        share: Whether a copy may hold the same locks, files and whatever else cannot be copied;
            for copies that nobody but the caller sees.
        instead: What the error says to do.

    Raises:
        ValueError: Something in the model cannot be copied; the error names it.
    """
    memo = dict(memo or {})
    try:
        return _deepcopied(model, memo)
    except Exception as error:
        found = list(_uncopyable(model, '', memo, set()))
        if not found or found[0][1] is model:
            raise
        if share:
            return _deepcopied(model, memo | {id(value): value for _, value, _ in found})
        path, value, reason = found[0]
        kind = f'{type(value).__module__}.{type(value).__qualname__}'
        raise ValueError(
            f'{type(model).__name__} cannot be copied: its {path!r} ({kind}) cannot ({reason}); '
            f'{instead}'
        ) from error


def _deepcopied(value: Any, memo: Mapping[int, Any]) -> Any:
    with _Detached():
        return copy.deepcopy(value, dict(memo))


def _uncopyable(
    value: Any, path: str, memo: Mapping[int, Any], seen: set[int]
) -> Iterator[tuple[str, Any, Exception]]:
    """What in a value cannot be copied, with its path and the reason."""
    if id(value) in seen:
        return
    seen.add(id(value))
    try:
        _deepcopied(value, memo)
    except Exception as error:
        found = False
        for name, part in _parts(value):
            for one in _uncopyable(part, f'{path}.{name}'.lstrip('.'), memo, seen):
                found = True
                yield one
        if not found:
            yield path, value, error


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """What a module or a container holds, by name."""
    if isinstance(value, nn.Module):
        held = dict(vars(value))
        own = [held.pop(kind) for kind in ('_parameters', '_buffers', '_modules')]
        return [*held.items(), *(item for part in own for item in part.items())]
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


class _Detached(TorchFunctionMode):
    """Computed tensors, which torch does not copy, are copied without where they came from."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def call(model: Callable, example_input: Any) -> Any:
    """Call with a copy of an input, so that a model which writes into it changes nothing outside.

    Args:
        model: What to call.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments.
    """
    args, kwargs = as_copies(example_input)
    return model(*args, **kwargs)


def as_copies(example_input: Any) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of :func:`call`: copies, which ask for no gradient."""
    with torch.inference_mode(False), torch.no_grad():
        return owned(as_arguments(example_input))


def owned(value: Any) -> Any:
    """A copy of what a model is called with: nested tensors and whatever else can be copied.

    Memory format and gradients of tensors stay; modules inside are not copied.
    """
    memo: dict[int, Any] = {}

    def own(leaf: Any) -> Any:
        if isinstance(leaf, nn.Module):
            return leaf
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in memo:  # one that is given twice stays one
                memo[id(leaf)] = leaf.clone()
            return memo[id(leaf)]
        try:
            with _Detached():
                return copy.deepcopy(leaf, memo)
        except Exception:  # such as locks and iterators, which cannot be given twice anyway
            return leaf

    return pytree.tree_map(own, value)


def keeping(model: Callable) -> Callable:
    """A call of a model that never changes what it is given.

    The first call with tensors of some kind gets copies. If the model does not write into these,
    later calls get the tensors themselves, so that no copying is timed.
    """
    harmless: set[tuple] = set()

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_flatten((args, kwargs))[0]
        kind = tuple(map(_kind, leaves))
        if kind in harmless:
            return model(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            args, kwargs = owned((args, kwargs))
        given = tensors((args, kwargs))
        before = [x._version for x in given]
        outputs = model(*args, **kwargs)
        if None not in kind and before == [x._version for x in given]:
            harmless.add(kind)
        return outputs

    return run


def _kind(leaf: Any) -> Any:
    """What decides whether a model makes a tensor of its own first; None where nobody can tell."""
    if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return repr(leaf) if isinstance(leaf, bool | int | float | str | type(None)) else None


def as_arguments(example_input: Any) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of :func:`call`."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    if isinstance(example_input, tuple | list):
        return tuple(example_input), {}
    return (example_input,), {}


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of a nesting of tuples, lists and dictionaries, in their order."""
    return [leaf for leaf in pytree.tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]


@own_passes()
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
    seen = torch.inference_mode(torch.is_inference_mode_enabled() and _torch.COUNTS_INFERENCE)
    # The counter stumbles over views that ask for gradients.
    with seen, evaluating(model), constant(model), counter, _spending(model, counter) as own:
        call(model, example_input)
    params = sum(p.numel() for p in model.parameters())
    rows = (
        Row(name, type(module).__name__, _held(module), own[module])
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
        hooked(*(m.register_forward_pre_hook(enter) for m in watched)),
        hooked(*(m.register_forward_hook(leave, always_call=True) for m in watched)),
    ):
        yield own


def _macs(counter: FlopCounterMode) -> int:
    """Multiply-adds that were counted so far."""
    found = counter.flop_counts['Global'].items()
    return sum(flops for op, flops in found if str(op).split('.')[-1] in _COUNTED) // 2


@contextmanager
def constant(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient; afterwards those do again that did."""
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


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
