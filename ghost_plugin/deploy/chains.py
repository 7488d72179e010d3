"""Which layer feeds which, in a network of anybody's making, followed symbolically.

Where the whole cannot be followed (its control flow looks at values), its parts are, each alone.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..layers.folding import fixed, plain
from ..layers.ghost import GhostConv2d
from .folded import FoldedGhostConv2d

GHOST_CONVS = (GhostConv2d, FoldedGhostConv2d)
Single = Callable[[fx.Node], nn.Module | None]
# What treats each channel alone: maps may pass through it in another order.
_CHANNELWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Mish, nn.Hardswish, nn.Hardtanh,
    nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)  # fmt: skip
_CHANNELWISE_CALLS = {
    F.relu, F.relu6, F.leaky_relu, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.max_pool2d,
    F.avg_pool2d, F.adaptive_avg_pool2d, torch.relu, torch.sigmoid, torch.tanh,
}  # fmt: skip
_CHANNELWISE_METHODS = {'relu', 'relu_', 'sigmoid', 'tanh', 'contiguous'}


@dataclass(frozen=True)
class Chain:
    """Names of layers that hang together with nobody else in between.

    Attributes:
        maker: A conv or a Ghost conv.
        norm: The norm that takes its maps, '' where none does.
        depthwise: Depthwise convs behind, in their order, with only channelwise steps between.
        reader: The conv that takes these maps in the end, and nobody else does; '' where others do.
    """

    maker: str
    norm: str = ''
    depthwise: tuple[str, ...] = ()
    reader: str = ''


class _Tracer(fx.Tracer):
    """Layers stay whole: convs, Ghost layers, norms and whatever has no parts."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = isinstance(module, (nn.Conv2d, *GHOST_CONVS)) or not any(module.children())
        return whole or fixed(module)


def chains(model: nn.Module) -> list[Chain]:
    """One chain per conv and Ghost conv that could be followed; the model is not touched."""
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    alone = {n for n, m in model.named_modules() if names[id(m)] == 1 and not _watched(m)}
    # Tracing runs the network's own code, which may keep what it is given.
    return [
        chain
        for prefix, graph, modules in _graphs(copy.deepcopy(model))
        for chain in _of_graph(prefix, graph, modules, alone)
    ]


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _graphs(
    model: nn.Module, prefix: str = ''
) -> Iterator[tuple[str, fx.Graph, dict[str, nn.Module]]]:
    try:
        graph = _Tracer().trace(model)
    except Exception:  # foreign code, which may raise anything when it sees no numbers
        for name, child in model.named_children():
            if any(child.children()):
                yield from _graphs(child, f'{prefix}{name}.')
        return
    yield prefix, graph, dict(model.named_modules())


def _of_graph(
    prefix: str, graph: fx.Graph, modules: dict[str, nn.Module], alone: set[str]
) -> Iterator[Chain]:
    calls = Counter(node.target for node in graph.nodes if node.op == 'call_module')

    def single(node: fx.Node) -> nn.Module | None:
        """The module of a node, where it runs once and stands at one place."""
        once = node.op == 'call_module' and calls[node.target] == 1
        return modules[node.target] if once and f'{prefix}{node.target}' in alone else None

    yield from _repeated(prefix, graph, modules, alone, calls)
    for node in graph.nodes:
        module = single(node)
        if isinstance(module, GHOST_CONVS) or (module is not None and plain(module)):
            yield _follow(prefix, node, modules, single)


def _follow(prefix: str, node: fx.Node, modules: dict[str, nn.Module], single: Single) -> Chain:
    maker, norm, depthwise = f'{prefix}{node.target}', '', []
    while len(node.users) == 1:
        (node,) = node.users
        module = single(node)
        name = f'{prefix}{node.target}'
        if module is not None and fixed(module):
            if norm or depthwise:
                break
            norm = name
        elif module is not None and plain(module):
            if module.groups == 1:
                return Chain(maker, norm, tuple(depthwise), name)
            if not module.groups == module.in_channels == module.out_channels:
                break
            depthwise.append(name)
        elif isinstance(module, GHOST_CONVS) and module.groups == 1:
            return Chain(maker, norm, tuple(depthwise), name)
        elif not _channelwise(node, modules.get(str(node.target))):
            break
    return Chain(maker, norm)


def _channelwise(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == 'call_module':
        return type(module) in _CHANNELWISE
    if node.op == 'call_function':
        return node.target in _CHANNELWISE_CALLS
    return node.op == 'call_method' and node.target in _CHANNELWISE_METHODS


def _repeated(
    prefix: str, graph: fx.Graph, modules: dict[str, nn.Module], alone: set[str], calls: Counter
) -> Iterator[Chain]:
    """Convs that run several times, each time with the same norm behind: heads of detectors."""
    behind: dict[str, set[str]] = {}
    for node in graph.nodes:
        if node.op == 'call_module' and calls[node.target] > 1 and plain(modules[node.target]):
            users = [user for user in node.users if user.op == 'call_module']
            only = users[0].target if len(users) == len(node.users) == 1 else ''
            behind.setdefault(node.target, set()).add(only)
    for conv, found in behind.items():
        norm = next(iter(found)) if len(found) == 1 else ''
        known = norm and fixed(modules[norm]) and calls[norm] == calls[conv]
        if known and {f'{prefix}{conv}', f'{prefix}{norm}'} <= alone:
            yield Chain(f'{prefix}{conv}', f'{prefix}{norm}')
