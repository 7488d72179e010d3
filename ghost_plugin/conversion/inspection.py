"""Stage 1: observe one forward pass to find convs, their costs and the norm behind each.

The network runs eagerly, so any network can be inspected, also one that torch.fx cannot trace.
Two observers are needed for that:

- :class:`_WatchedParameters` notes when other code reads a conv's weight. The read of the
  attribute counts, not an operation on the tensor, because a Ghost conv has no ``weight`` and
  ``conv.weight.dtype`` or ``conv.bias is None`` would fail or change there.
- :class:`_TensorProvenance` follows tensors by identity through the operations that PyTorch
  dispatches. It finds outputs that a head reshapes before it returns them, and feature maps that
  anything besides the norm reads.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..layers.common import check_module
from ..layers.ghost import GhostConv2d
from ..utils.modules import as_copies, eval_mode, removing_hooks, tensors_in
from .fitting.batches import batch_size
from .reasons import other_conv

# Wrappers that hide the network inside, and the module to give instead.
_WRAPPERS = {
    'DataParallel': 'model.module',
    'DistributedDataParallel': 'model.module',
    'FullyShardedDataParallel': 'the model before it was wrapped',
    'OptimizedModule': 'model._orig_mod, and compile afterwards',
    'RecursiveScriptModule': 'the model before it was scripted',
}

# Operations that heads apply to a conv's output, with weights, the input or each other.
_FINISHING = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        'sigmoid _softmax tanh exp permute view _unsafe_view transpose clone unsqueeze squeeze '
        'add sub rsub mul div neg log log1p clamp clamp_min clamp_max expand _to_copy '
        'upsample_nearest2d upsample_bilinear2d upsample_bicubic2d'
    ).split()
)


@dataclass(frozen=True)
class ConvRecord:
    """A conv of a network and what one forward pass showed about it.

    Attributes:
        name, conv: The module, by its first name.
        aliases: Its other names.
        blocker: Code of ``REASONS`` that its class or its place gives, or ``''``.
        norm: Name of the norm that is the only reader of the conv's output, or ``''``.
        pixels: Positions where its kernels are applied in all calls, per image.
        calls: Number of calls.
        min_output_size: The smallest height or width of its outputs, pixels.
        weight_accessed: Other code reads its weight or bias.
        referenced_outside_modules: A list or dictionary that is no module holds it, too.
        makes_output: Its feature maps are outputs of the network.
    """

    name: str
    conv: nn.Module
    aliases: tuple[str, ...]
    blocker: str
    norm: str
    pixels: int
    calls: int
    min_output_size: int
    weight_accessed: bool
    referenced_outside_modules: bool
    makes_output: bool


class _Observation:
    """Counters of one conv while the network runs."""

    def __init__(self) -> None:
        self.calls = self.pixels = self.min_output_size = self.running = 0
        self.weight_accessed = False


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
    if any(map(is_lazy, model.parameters())):
        raise ValueError(f'{kind} has lazy modules; call the model once before it is converted')


def inspect_convs(model: nn.Module, example_input: Any) -> tuple[ConvRecord, ...]:
    """Find all convs and observe them in one forward pass.

    Args:
        model: A network; it is left as it was.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments.

    Returns:
        A record per conv in the order of the first calls; those never called come last.
    """
    check_root(model)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if other_conv(module) is not None:
            names.setdefault(module, []).append(name)
    ghosts = [m for m in model.modules() if isinstance(m, GhostConv2d)]
    inside_ghosts = {part for ghost in ghosts for part in ghost.modules()}
    referenced = _referenced_outside_modules(model, names)
    observed: dict[nn.Module, _Observation] = {conv: _Observation() for conv in names}
    order: dict[nn.Module, None] = {}
    outputs, norms = _observe(model, example_input, observed, order)
    images = max(1, batch_size(example_input))
    return tuple(
        ConvRecord(
            name=names[conv][0],
            conv=conv,
            aliases=tuple(names[conv][1:]),
            blocker='converted' if conv in inside_ghosts else other_conv(conv) or '',
            norm=norms.get(conv, ''),
            pixels=observed[conv].pixels // images,
            calls=observed[conv].calls,
            min_output_size=observed[conv].min_output_size,
            weight_accessed=observed[conv].weight_accessed,
            referenced_outside_modules=conv in referenced,
            makes_output=conv in outputs,
        )
        for conv in {**order, **names}
    )


def _referenced_outside_modules(model: nn.Module, convs: Iterable[nn.Module]) -> set[nn.Module]:
    """Return convs that are, or whose weights are, in attributes that a replacement would miss."""
    owners = {id(p): conv for conv in convs for p in conv.parameters()}
    owners |= {id(conv): conv for conv in convs}
    found = set()
    for module in model.modules():
        for name, value in vars(module).items():
            parts = value.values() if isinstance(value, dict) else value
            parts = parts if isinstance(value, dict | list | tuple | set) else (value,)
            if name not in ('_modules', '_parameters'):
                found |= {owners[id(part)] for part in parts if id(part) in owners}
    return found


def _observe(
    model: nn.Module,
    example_input: Any,
    observed: dict[nn.Module, _Observation],
    order: dict[nn.Module, None],
) -> tuple[set[nn.Module], dict[nn.Module, str]]:
    """Run the network once, count in ``observed``, and note the order of the first calls.

    Returns:
        Convs that make outputs, and the name of the norm behind a conv.
    """
    args, kwargs = as_copies(example_input)
    given = [*model.parameters(), *model.buffers(), *pytree.tree_flatten((args, kwargs))[0]]
    provenance = _TensorProvenance(given)
    norm_inputs: dict[str, list[nn.Module | None]] = {}
    with ExitStack() as stack:
        for conv, observation in observed.items():
            stack.enter_context(_observing(conv, observation, order, provenance))
        for name, module in model.named_modules():
            has_mean = isinstance(getattr(module, 'running_mean', None), torch.Tensor)
            if has_mean and not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                own = norm_inputs.setdefault(name, [])
                stack.enter_context(_listing_makers(module, own, provenance))
        stack.enter_context(provenance)
        stack.enter_context(eval_mode(model))
        leaves = pytree.tree_flatten(model(*args, **kwargs))[0]
    outputs = {conv for leaf in leaves for conv in provenance.makers_of(leaf) or ()}
    uses = {conv: provenance.uses[key] for key, (conv, _) in provenance.makers.items()}
    # A norm takes a conv's output if each runs once and nothing else reads it.
    norms = {
        convs[0]: name
        for name, convs in norm_inputs.items()
        if len(convs) == 1
        and convs[0] is not None
        and observed[convs[0]].calls == 1
        and convs[0] not in outputs
        and uses[convs[0]] == 1
    }
    return outputs, norms


@contextmanager
def _observing(
    conv: nn.Module,
    observation: _Observation,
    order: dict[nn.Module, None],
    provenance: '_TensorProvenance',
) -> Iterator[None]:
    """Count the calls of a conv, and note who made its outputs and who reads its weight."""

    def _hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        order.setdefault(module)
        provenance.makers[id(output)] = module, output
        # A transposed conv applies its kernel to every pixel of its input.
        transposed = getattr(module, 'transposed', False)
        maps = (tensors_in((args, kwargs)) if transposed else tensors_in(output))[:1]
        channels = module.in_channels if transposed else module.out_channels
        # Not the size alone: boxes or windows may stand on the batch axis. Sparse tensors of other
        # libraries have no pixels.
        observation.pixels += sum(each.numel() for each in maps) // channels
        if isinstance(module, nn.Conv2d):
            size = min(output.shape[-2:])
            observation.min_output_size = min(size, observation.min_output_size or size)
        observation.calls += 1

    observing = conv.register_forward_hook(_hook, with_kwargs=True)
    with _watch_weight_access(conv, observation), removing_hooks(observing):
        yield


@contextmanager
def _listing_makers(
    norm: nn.Module, makers: list[nn.Module | None], provenance: '_TensorProvenance'
) -> Iterator[None]:
    """List the conv that made the input of each call of a norm, None where there is none."""

    def _hook(module: nn.Module, inputs: Any) -> None:
        makers.append(provenance.makers.get(id(inputs[0]), (None,))[0] if inputs else None)

    with removing_hooks(norm.register_forward_pre_hook(_hook)):
        yield


@contextmanager
def _watch_weight_access(conv: nn.Module, observation: _Observation) -> Iterator[None]:
    """Note when other code reads the conv's weight while the conv itself is not running."""
    if type(conv) is not nn.Conv2d:
        yield  # kept because of its class, or known to read no other conv
        return

    def enter(*args: Any) -> None:
        observation.running += 1

    def leave(*args: Any) -> None:
        observation.running -= 1

    handles = (
        conv.register_forward_pre_hook(enter),
        conv.register_forward_hook(leave, always_call=True),
    )
    own = conv._parameters
    watched = _WatchedParameters(own)
    watched.observation = observation
    conv._parameters = watched
    try:
        with removing_hooks(*handles):
            yield
    finally:
        conv._parameters = own
        own.update(watched)


class _WatchedParameters(dict[str, Any]):
    """The parameters of a conv; notes which of them other code asks for by name."""

    observation: _Observation

    def __getitem__(self, name: str) -> Any:
        if name in ('weight', 'bias') and not self.observation.running:
            self.observation.weight_accessed = True
        return super().__getitem__(name)


class _TensorProvenance(TorchDispatchMode):
    """Follows which conv made which tensor, and how many operations read it.

    Args:
        given: Tensors that no conv made: parameters, buffers and inputs.
    """

    def __init__(self, given: Iterable[Any]) -> None:
        super().__init__()
        # With the tensors themselves, so that no id comes twice.
        self.makers: dict[int, tuple[nn.Module, Any]] = {}
        # Tensors that finishing operations made of given ones and of outputs of these convs.
        self.finished: dict[int, tuple[tuple[nn.Module, ...], Any]] = {
            id(x): ((), x) for x in given
        }
        self.uses: Counter[int] = Counter()

    def makers_of(self, leaf: Any) -> tuple[nn.Module, ...] | None:
        """Return the convs that alone made a tensor, finished or not; None if others did, too."""
        if id(leaf) in self.makers:
            return (self.makers[id(leaf)][0],)
        return self.finished.get(id(leaf), (None, None))[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_flatten((args, kwargs))[0]
        self.uses.update({id(leaf) for leaf in leaves} & self.makers.keys())
        result = func(*args, **kwargs)
        if func.overloadpacket in _FINISHING:
            parts = [self.makers_of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
            makers = [part for part in parts if part is not None]
            if len(makers) == len(parts):
                self.finished[id(result)] = tuple(dict.fromkeys(chain(*makers))), result
        return result
