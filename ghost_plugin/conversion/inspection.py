"""One forward pass of a network, watched: which convs run, on what, and which norm follows each."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..layers.common import check_module
from ..layers.ghost import GhostConv2d
from ..utils.modules import as_copies, eval_mode, removing_hooks, tensors_in
from .fitting.batches import batch_size

# Wrappers that hide the network inside; what to hand over instead.
_WRAPPERS = {
    'DataParallel': 'model.module',
    'DistributedDataParallel': 'model.module',
    'FullyShardedDataParallel': 'the model before it was wrapped',
    'OptimizedModule': 'model._orig_mod, and compile afterwards',
    'RecursiveScriptModule': 'the model before it was scripted',
}

# What heads do with a conv's maps before they return them, with weights, the input or each other.
_FINISHING = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        'sigmoid _softmax tanh exp permute view _unsafe_view transpose clone unsqueeze squeeze '
        'add sub rsub mul div neg log log1p clamp clamp_min clamp_max expand _to_copy '
        'upsample_nearest2d upsample_bilinear2d upsample_bicubic2d'
    ).split()
)


# Convolutions of torch that are no nn.Conv2d, and their codes of REASONS.
_OTHERS = {
    nn.Conv1d: '1d',
    nn.Conv3d: '3d',
    nn.ConvTranspose1d: 'transposed',
    nn.ConvTranspose2d: 'transposed',
    nn.ConvTranspose3d: 'transposed',
}


@dataclass
class ConvRecord:
    """A conv of a network and what one forward pass told about it."""

    name: str
    conv: nn.Module
    aliases: tuple[str, ...] = ()
    norm: str = ''  # the norm that takes this conv's maps, and nobody else's
    pixels: int = 0  # where its kernels are applied in all calls, per picture of the example
    calls: int = 0
    smallest: int = 0  # side of its smallest map, pixels
    read: bool = False  # somebody but the conv itself looked at its weight or bias
    held: bool = False  # a list or dictionary that is no module holds it too
    last: bool = False  # its maps are outputs of the network
    settings: dict[str, Any] = field(default_factory=dict)
    fixed: bool = False  # the ratio was asked for, a budget may not choose another
    reason: str = ''  # code of REASONS, '' for a conv that is converted


def check_root(model: nn.Module) -> None:
    """Raise when the network is wrapped in something that a conversion would break.

    Raises:
        TypeError: Not a module, or one that wraps the network.
        ValueError: Modules whose shapes are not known before the first call.
    """
    check_module(model)
    kind = type(model).__name__
    # By name, because importing FSDP is slow; with bases, because frameworks derive their own.
    bases = [base.__name__ for base in type(model).__mro__]
    if isinstance(model, torch.jit.ScriptModule):
        bases.append('RecursiveScriptModule')
    wrapper = next((name for name in bases if name in _WRAPPERS), None)
    if wrapper is not None:
        raise TypeError(f'a {kind} cannot be converted; give {_WRAPPERS[wrapper]}')
    if any(isinstance(p, UninitializedTensorMixin) for p in model.parameters()):
        raise ValueError(f'{kind} has lazy modules; call the model once before it is converted')


def other_conv(module: nn.Module) -> str | None:
    """The reason code of a convolution that is no ``nn.Conv2d``.

    Args:
        module: Any module.

    Returns:
        A code of ``REASONS``; ``''`` for an ``nn.Conv2d``; None where it is no convolution.
    """
    if isinstance(module, nn.Conv2d):
        return ''
    for kind, code in _OTHERS.items():
        if isinstance(module, kind):
            return code
    # Deformable, sparse and quantized convs, those with weights per input, and so on. Blocks such
    # as mmcv's ConvModule describe themselves like a conv, too, but the weight is that of a part.
    channels = [getattr(module, name, None) for name in ('in_channels', 'out_channels')]
    described = all(isinstance(number, int) and number > 0 for number in channels)
    described = described and isinstance(getattr(module, 'kernel_size', None), int | list | tuple)
    scripted = isinstance(module, torch.jit.ScriptModule)  # takes no hooks
    return 'custom' if described and _has_weight(module) and not scripted else None


def _has_weight(module: nn.Module) -> bool:
    """Whether a module has a weight of its own; a computed one is not computed for that."""
    own = 'weight' in module._parameters or 'weight' in vars(module)
    return own or hasattr(type(module), 'weight')


def inspect_convs(model: nn.Module, example_input: Any) -> list[ConvRecord]:
    """All convs in the order in which the forward pass calls them, those never called last.

    Convolutions that are no ``nn.Conv2d`` have their reason already.
    """
    check_root(model)
    found: dict[int, ConvRecord] = {}
    ghosts = [m for m in model.modules() if isinstance(m, GhostConv2d)]
    inside = {id(part) for ghost in ghosts for part in ghost.modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        code = other_conv(module)
        if code is None:
            continue
        if id(module) in found:
            found[id(module)].aliases += (name,)
        else:
            found[id(module)] = ConvRecord(name, module, reason=code)
        if id(module) in inside:
            found[id(module)].reason = 'converted'
    _find_held(model, found)
    order = _run(model, example_input, found)
    number = max(1, batch_size(example_input))
    for record in found.values():
        record.pixels //= number
    return sorted(found.values(), key=lambda f: order.get(id(f.conv), len(order)))


def _find_held(model: nn.Module, found: dict[int, ConvRecord]) -> None:
    """Mark convs that are, or whose weights are, in attributes that a swap would miss."""
    holders = {id(p): record for record in found.values() for p in record.conv.parameters()}
    holders |= found
    for module in model.modules():
        for name, value in vars(module).items():
            parts = value.values() if isinstance(value, dict) else value
            parts = parts if isinstance(value, dict | list | tuple | set) else (value,)
            for part in parts if name not in ('_modules', '_parameters') else ():
                if id(part) in holders:
                    holders[id(part)].held = True


def _run(model: nn.Module, example_input: Any, found: dict[int, ConvRecord]) -> dict[int, int]:
    """Fill in what one forward pass tells; the order of the first calls."""
    order: dict[int, int] = {}
    args, kwargs = as_copies(example_input)
    with ExitStack() as stack:
        for record in found.values():
            stack.enter_context(_watched(record, order))
        given = [*model.parameters(), *model.buffers(), *pytree.tree_flatten((args, kwargs))[0]]
        maps = stack.enter_context(_norms(model, list(found.values()), given))
        stack.enter_context(eval_mode(model))
        for leaf in pytree.tree_flatten(model(*args, **kwargs))[0]:
            for record in maps.makers_of(leaf) or ():
                record.last = True
    return order


@contextmanager
def _watched(record: ConvRecord, order: dict[int, int]) -> Iterator[None]:
    conv = record.conv

    def seen(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        order.setdefault(id(module), len(order))
        # A transposed conv applies its kernel to every pixel of its input.
        transposed = getattr(module, 'transposed', False)
        maps = (tensors_in((args, kwargs)) if transposed else tensors_in(output))[:1]
        channels = module.in_channels if transposed else module.out_channels
        # Not the map's size alone: boxes or windows may stand where the pictures stood. Sparse
        # tensors of other libraries have no pixels.
        record.pixels += sum(each.numel() for each in maps) // channels
        if isinstance(module, nn.Conv2d):
            side = min(output.shape[-2:])
            record.smallest = side if not record.calls else min(side, record.smallest)
        record.calls += 1

    seeing = conv.register_forward_hook(seen, with_kwargs=True)
    with _spied(conv, record), removing_hooks(seeing):
        yield


@contextmanager
def _spied(conv: nn.Module, record: ConvRecord) -> Iterator[None]:
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
        with removing_hooks(enter), removing_hooks(leave):
            yield
    finally:
        del vars(conv)['_on_read']
        conv.__class__ = nn.Conv2d


class _Spied(nn.Conv2d):
    """A conv that tells when its weight or bias is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in ('weight', 'bias') and '_on_read' in self.__dict__:
            self.__dict__['_on_read']()
        return super().__getattr__(name)


class _Maps(TorchDispatchMode):
    """Who made which map, and how many operations took it."""

    def __init__(self, given: Iterable[Any]) -> None:
        super().__init__()
        # With the maps themselves, so that no id comes twice.
        self.makers: dict[int, tuple[ConvRecord, torch.Tensor]] = {}
        # Made of these as outputs are; of none, what is given.
        self.finished: dict[int, tuple[tuple[ConvRecord, ...], Any]] = {
            id(x): ((), x) for x in given
        }
        self.uses: Counter[int] = Counter()

    def makers_of(self, leaf: Any) -> tuple[ConvRecord, ...] | None:
        """The convs whose maps a tensor holds, finished or not; None where others made it, too."""
        if id(leaf) in self.makers:
            return (self.makers[id(leaf)][0],)
        return self.finished.get(id(leaf), (None, None))[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_flatten((args, kwargs))[0]
        self.uses.update({id(leaf) for leaf in leaves} & self.makers.keys())
        result = func(*args, **kwargs)
        if func.overloadpacket in _FINISHING:
            parts = [self.makers_of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
            if None not in parts:
                once = {id(record): record for record in chain(*parts)}
                self.finished[id(result)] = tuple(once.values()), result
        return result


@contextmanager
def _norms(model: nn.Module, records: list[ConvRecord], given: Iterable[Any]) -> Iterator[_Maps]:
    """Find the norm that takes a conv's very output, where nothing else takes it."""
    maps = _Maps(given)
    takers: dict[str, list[ConvRecord | None]] = {}

    def made(record: ConvRecord) -> Callable:
        return lambda module, inputs, output: maps.makers.update({id(output): (record, output)})

    def taken(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple) -> None:
            record, _ = maps.makers.get(id(inputs[0]), (None, None)) if inputs else (None, None)
            takers.setdefault(name, []).append(record)

        return hook

    with ExitStack() as stack:
        for record in records:
            stack.enter_context(removing_hooks(record.conv.register_forward_hook(made(record))))
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            if isinstance(getattr(module, 'running_mean', None), torch.Tensor):
                stack.enter_context(removing_hooks(module.register_forward_pre_hook(taken(name))))
        stack.enter_context(maps)
        yield maps
    uses = {id(record): maps.uses[key] for key, (record, _) in maps.makers.items()}
    for name, given in takers.items():
        record = given[0]
        if len(given) > 1 or record is None or record.calls > 1 or record.last:
            continue
        if uses[id(record)] == 1:
            record.norm = name
