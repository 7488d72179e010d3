"""One forward pass of a network, watched: which convs run, on what, and which norm follows each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..analysis import call, evaluating
from ..layers.ghost import GhostConv2d

# Wrappers that hide the network inside; what to hand over instead.
_WRAPPERS = {
    'DataParallel': 'model.module',
    'DistributedDataParallel': 'model.module',
    'FullyShardedDataParallel': 'the model before it was wrapped',
    'OptimizedModule': 'model._orig_mod, and compile afterwards',
    'RecursiveScriptModule': 'the model before it was scripted',
}


@dataclass
class Found:
    """A conv of a network and what one forward pass told about it."""

    name: str
    conv: nn.Conv2d
    aliases: tuple[str, ...] = ()
    norm: str = ''  # the norm that takes this conv's maps, and nobody else's
    pixels: int = 0  # output pixels of all calls, per picture
    calls: int = 0
    smallest: int = 0  # side of its smallest map, pixels
    read: bool = False  # somebody but the conv itself looked at its weight
    last: bool = False  # its maps are outputs of the network
    settings: dict[str, Any] = field(default_factory=dict)
    fixed: bool = False  # the ratio was asked for, a budget may not choose another
    reason: str = ''  # code of REASONS, '' for a conv that is converted


def check_root(model: nn.Module) -> None:
    """Raise when the network is wrapped in something that a conversion would break.

    Raises:
        TypeError: Not a module, or one that wraps the network.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f'a model must be a torch.nn.Module, got {kind}')
    if kind in _WRAPPERS or isinstance(model, torch.jit.ScriptModule):
        inside = _WRAPPERS.get(kind, _WRAPPERS['RecursiveScriptModule'])
        raise TypeError(f'a {kind} cannot be converted; give {inside}')


def find_convs(model: nn.Module, example_input: Any) -> list[Found]:
    """All convs in the order in which the forward pass calls them, those never called last."""
    check_root(model)
    found: dict[int, Found] = {}
    ghosts = [m for m in model.modules() if isinstance(m, GhostConv2d)]
    inside = {id(part) for ghost in ghosts for part in ghost.modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Conv2d):
            continue
        if id(module) in found:
            found[id(module)].aliases += (name,)
        else:
            found[id(module)] = Found(name, module)
        if id(module) in inside:
            found[id(module)].reason = 'converted'
    order = _run(model, example_input, found)
    return sorted(found.values(), key=lambda f: order.get(id(f.conv), len(order)))


def _run(model: nn.Module, example_input: Any, found: dict[int, Found]) -> dict[int, int]:
    """Fill in what one forward pass tells; the order of the first calls."""
    order: dict[int, int] = {}
    with ExitStack() as stack:
        for record in found.values():
            stack.enter_context(_watched(record, order))
        makers = stack.enter_context(_norms(model, list(found.values())))
        stack.enter_context(evaluating(model))
        for leaf in pytree.tree_leaves(call(model, example_input)):
            if id(leaf) in makers:
                makers[id(leaf)][0].last = True
    return order


@contextmanager
def _watched(record: Found, order: dict[int, int]) -> Iterator[None]:
    conv = record.conv

    def seen(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        order.setdefault(id(module), len(order))
        side = min(output.shape[-2:])
        record.smallest = side if not record.calls else min(side, record.smallest)
        record.calls += 1
        record.pixels += output.shape[-2] * output.shape[-1]

    with _spied(conv, record), _hooked(conv.register_forward_hook(seen)):
        yield


@contextmanager
def _spied(conv: nn.Conv2d, record: Found) -> Iterator[None]:
    """Note when somebody reads the conv's weight while the conv itself is not running."""
    if type(conv) is not nn.Conv2d:
        yield  # left alone by its class, or known to read no other conv
        return
    running = []
    conv.__class__ = _Spied
    vars(conv)['_on_read'] = lambda: running or setattr(record, 'read', True)
    enter = conv.register_forward_pre_hook(lambda *args: running.append(True))
    leave = conv.register_forward_hook(lambda *args: running.pop() and None, always_call=True)
    try:
        with _hooked(enter), _hooked(leave):
            yield
    finally:
        del vars(conv)['_on_read']
        conv.__class__ = nn.Conv2d


class _Spied(nn.Conv2d):
    """A conv that tells when its weight is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name == 'weight' and '_on_read' in self.__dict__:
            self.__dict__['_on_read']()
        return super().__getattr__(name)


@contextmanager
def _norms(model: nn.Module, records: list[Found]) -> Iterator[dict[int, tuple]]:
    """Find the norm that takes a conv's very output, where it takes nothing else.

    Yields who made which map, by the map's id.
    """
    makers: dict[int, tuple[Found, torch.Tensor]] = {}  # keeps the maps, so that no id comes twice
    takers: dict[str, list[Found | None]] = {}

    def made(record: Found) -> Callable:
        return lambda module, inputs, output: makers.update({id(output): (record, output)})

    def taken(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple) -> None:
            record, _ = makers.get(id(inputs[0]), (None, None)) if inputs else (None, None)
            takers.setdefault(name, []).append(record)

        return hook

    with ExitStack() as stack:
        for record in records:
            stack.enter_context(_hooked(record.conv.register_forward_hook(made(record))))
        for name, module in model.named_modules():
            if isinstance(getattr(module, 'running_mean', None), torch.Tensor):
                stack.enter_context(_hooked(module.register_forward_pre_hook(taken(name))))
        yield makers
    for name, given in takers.items():
        if len(given) == 1 and given[0] is not None and given[0].calls == 1:
            given[0].norm = name


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
