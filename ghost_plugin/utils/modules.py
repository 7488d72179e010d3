"""Modes, hooks, copies and calls of modules that leave the caller's objects unchanged."""

import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import checkpoint

from . import torch_compat

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# Each library has its own classes.
_DROPOUT_NAMES = {'DropPath', 'DropBlock', 'DropBlock2d', 'StochasticDepth'}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
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
def removing_hooks(*handles: Any) -> Iterator[None]:
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
        new: Its temporary value.
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


# Both variants of torch.utils.checkpoint, wherever the function itself was imported to. The
# re-entrant one hides inner modules from gradients, and both would run inner hooks twice.
_PLAIN_CHECKPOINTS = (
    _Replaced(
        checkpoint.CheckpointFunction,
        'apply',
        staticmethod(lambda function, preserve_rng_state, *args: function(*args)),
    ),
    _Replaced(
        checkpoint,
        '_checkpoint_without_reentrant_generator',
        lambda *args, **kwargs: iter((None,)),
    ),
)


@contextmanager
def plain_forward() -> Iterator[None]:
    """Run models in full precision and without gradient checkpointing.

    Every entry point that runs a model uses it. Otherwise autocast would round what is fitted and
    compared, and gradient checkpointing would hide parts of the model.
    """
    with torch_compat.full_precision(), _PLAIN_CHECKPOINTS[0], _PLAIN_CHECKPOINTS[1]:
        yield


def deepcopy_detached(
    model: nn.Module,
    memo: Mapping[int, Any] | None = None,
    *,
    share: bool = False,
    instead: str = 'set it to None meanwhile, or give its class a __deepcopy__',
) -> nn.Module:
    """A deep copy, also of a model that keeps computed tensors of its last call.

    Args:
        model: The model to copy.
        memo: Replacements for parts of it, by the part's id.
        share: Let the copy share locks, files and other objects that cannot be copied; for copies
            that only the caller sees.
        instead: Advice in the error message.

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
    """Objects inside a value that cannot be copied, with path and reason."""
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
    """Content of a module or a container by name."""
    if isinstance(value, nn.Module):
        held = dict(vars(value))
        own = [held.pop(kind) for kind in ('_parameters', '_buffers', '_modules')]
        return [*held.items(), *(item for part in own for item in part.items())]
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


class _Detached(TorchFunctionMode):
    """Copies computed tensors, which torch does not copy, without their history."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def is_dropout(module: nn.Module) -> bool:
    """True if a module drops activations in training and returns its input in eval mode."""
    return type(module) in _DROPOUTS or type(module).__name__ in _DROPOUT_NAMES


def call_model(model: Callable, example_input: Any) -> Any:
    """Call with a copy of an input, which the model may write to.

    Args:
        model: Any callable.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments.
    """
    args, kwargs = as_copies(example_input)
    return model(*args, **kwargs)


class CallFinished(BaseException):  # no Exception, so that no model catches it
    """Ends a call of a model behind the last module that matters."""


@contextmanager
def partial_calls(model: nn.Module, names: Iterable[str]) -> Iterator[Callable[[Any], None]]:
    """Give a function that calls a model only to its hooks: calls end behind some modules.

    The heads of a detector, which run on many crops, take most of the time of a call.

    Args:
        model: Its hooks of these modules are there already.
        names: Of modules. The first call that reaches all of them counts their calls; later ones
            end when they have made as many.
    """
    seen: Counter[str] = Counter()
    known: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def _hook(*given: Any) -> None:
            seen[name] += 1
            if known and all(seen[other] >= number for other, number in known.items()):
                raise CallFinished

        return _hook

    names = list(names)
    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]

    def call(example_input: Any) -> None:
        seen.clear()
        try:
            call_model(model, example_input)
        except CallFinished:
            return
        if all(seen[name] for name in names):
            known.update(seen)

    with removing_hooks(*handles):
        yield call


def as_copies(example_input: Any) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of :func:`call_model`, copied, without gradients."""
    with torch.inference_mode(False), torch.no_grad():
        return clone_tensors(as_arguments(example_input))


def clone_tensors(value: Any) -> Any:
    """A copy of nested inputs: tensors and everything else that can be copied.

    Memory format and gradients of tensors stay; modules inside are not copied.
    """
    memo: dict[int, Any] = {}

    def own(leaf: Any) -> Any:
        if isinstance(leaf, nn.Module):
            return leaf
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in memo:  # a tensor that occurs twice stays one
                memo[id(leaf)] = leaf.clone()
            return memo[id(leaf)]
        try:
            with _Detached():
                return copy.deepcopy(leaf, memo)
        except Exception:  # such as locks and iterators
            return leaf

    return pytree.tree_map(own, value)


def preserving_inputs(model: Callable) -> Callable:
    """Wrap a model so that its calls never change their inputs.

    The first call with tensors of some kind gets copies. If the model does not write to these,
    later calls get the tensors themselves, so that no copying is timed.
    """
    harmless: set[tuple] = set()

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_flatten((args, kwargs))[0]
        kind = tuple(map(_kind, leaves))
        if kind in harmless:
            return model(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            args, kwargs = clone_tensors((args, kwargs))
        given = tensors_in((args, kwargs))
        before = [x._version for x in given]
        outputs = model(*args, **kwargs)
        if None not in kind and before == [x._version for x in given]:
            harmless.add(kind)
        return outputs

    return run


def _kind(leaf: Any) -> Any:
    """Key of inputs that a model treats alike; None if that is unknown."""
    if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return repr(leaf) if isinstance(leaf, bool | int | float | str | type(None)) else None


def as_arguments(example_input: Any) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of :func:`call_model`."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    if isinstance(example_input, tuple | list):
        return tuple(example_input), {}
    return (example_input,), {}


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dictionaries, in order."""
    return [leaf for leaf in pytree.tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]


def to_channels_last(x: torch.Tensor) -> torch.Tensor:
    """Convert a 4-D tensor to channels-last; return other tensors as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Switch off gradients of all parameters; afterwards they are as before."""
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
