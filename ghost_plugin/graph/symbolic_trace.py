"""Symbolic graphs of arbitrary models, and which norm follows which conv in them.

Where a model cannot be traced as a whole (its control flow depends on values, or on which arguments
are given), its children are traced instead.
"""

import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import fx, nn

from ..layers.bn_folding import has_hooks_or_parametrization, is_affine_norm, is_standard_conv
from ..layers.ghost import GhostConv2d
from ..utils.modules import deepcopy_detached
from .folded_ghost import FoldedGhostConv2d

GHOST_CONVS = (GhostConv2d, FoldedGhostConv2d)
_CONSTANT = '_tensor_constant'  # prefix that fx gives to tensors that a call creates


@dataclass(frozen=True)
class TracedPart:
    """The graph of a model, or of a part of it.

    Attributes:
        prefix: Prefix of the part's module names in the model, '' for the whole model.
        graph: Graph of one call.
        modules: Modules of the model by their names without the prefix.
        unshared: Full names of the modules that have one name, no hooks, no computed weights and
            no weights that another module or the graph itself reads.
    """

    prefix: str
    graph: fx.Graph
    modules: dict[str, nn.Module]
    unshared: frozenset[str]

    @functools.cached_property
    def calls(self) -> Counter[str]:
        """Number of calls of each module, by its name without the prefix."""
        return Counter(node.target for node in self.graph.nodes if node.op == 'call_module')

    def name(self, node: fx.Node) -> str:
        """Full name of a node's module."""
        return f'{self.prefix}{node.target}'


class _Tracer(fx.Tracer):
    """Treats convs, Ghost layers, norms and modules without children as single steps."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = isinstance(module, (nn.Conv2d, *GHOST_CONVS)) or not any(module.children())
        return whole or is_affine_norm(module)


def trace_parts(model: nn.Module) -> list[TracedPart]:
    """Trace the model, or those of its parts that can be traced; the model is not changed."""
    # Tracing runs the model's own code, which may keep what it is given.
    graphs = _graphs(deepcopy_detached(model, share=True))
    return with_current_modules([TracedPart(*g, {}, frozenset()) for g in graphs], model)


def with_current_modules(parts: Iterable[TracedPart], model: nn.Module) -> list[TracedPart]:
    """The same graphs, after some modules of the model were replaced.

    Args:
        parts: Traced from ``model``.
        model: The model; modules that were replaced have the names of the old ones.
    """
    named = list(model.named_modules(remove_duplicate=False))
    names = Counter(id(module) for _, module in named)
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    unshared = {
        name
        for name, module in named
        if names[id(module)] == 1
        and not any(has_hooks_or_parametrization(part) for part in module.modules())
        and all(owners[id(p)] == 1 for p in module.parameters())
    }
    return [
        replace(
            part,
            modules={n.removeprefix(part.prefix): m for n, m in named if n.startswith(part.prefix)},
            unshared=frozenset(unshared - {part.prefix + name for name in _weight_reads(part)}),
        )
        for part in parts
    ]


def _weight_reads(part: TracedPart) -> Iterator[str]:
    """Names without the prefix of the modules whose tensors the graph itself reads."""
    for node in part.graph.nodes:
        if node.op == 'get_attr':
            yield node.target.rpartition('.')[0]


def _graphs(model: nn.Module, prefix: str = '') -> Iterator[tuple[str, fx.Graph]]:
    try:
        graph = _graph(model)
    except Exception:  # the model's own code may raise anything when it sees no values
        for name, child in model.named_children():
            if any(child.children()):
                yield from _graphs(child, f'{prefix}{name}.')
        return
    yield prefix, graph


def _graph(model: nn.Module) -> fx.Graph:
    """Graph of a call with all arguments.

    Raises:
        ValueError: A call with the required arguments alone runs other steps.
    """
    graph = _Tracer().trace(model)
    parameters = inspect.signature(model.forward).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
    if defaults:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about values that a graph cannot check
            least = _Tracer().trace(model, concrete_args=defaults)
        given = {node.target for node in graph.nodes if node.op == 'placeholder'}
        if _steps(least, given) != _steps(graph, given):
            raise ValueError('the steps depend on which arguments are given')
    return graph


def _steps(graph: fx.Graph, given: set[str]) -> list[tuple[str, str, str]]:
    """The steps that use the given arguments, independent of the names of nodes."""
    places: dict[fx.Node, str] = {}
    steps = []
    for node in graph.nodes:
        if node.op == 'placeholder' and node.target in given:
            places[node] = node.target
        # Defaults are only checked.
        elif node.op != 'placeholder' and all(n in places for n in node.all_input_nodes):
            places[node] = f'%{len(steps)}'
            inputs = fx.map_arg((node.args, node.kwargs), places.get)
            # A constant has another number in each trace.
            target = str(node.target).split(_CONSTANT)[0] or _CONSTANT
            steps.append((node.op, target, str(inputs)))
    return steps


def unshared_module(part: TracedPart, node: fx.Node) -> nn.Module | None:
    """The module of a node, if it is unshared and runs once.

    Args:
        part: The traced part.
        node: A node of its graph.
    """
    once = node.op == 'call_module' and part.calls[node.target] == 1
    return part.modules.get(node.target) if once and part.name(node) in part.unshared else None


def conv_norm_neighbours(parts: Iterable[TracedPart]) -> dict[nn.Module, nn.Module | None]:
    """Map each conv to its only consumer and each norm to its only producer.

    None stands for several neighbours, for one that is not a module, and for modules whose weights
    the graph reads.
    """
    found: dict[nn.Module | None, nn.Module | None] = {}
    for part in parts:
        called = {
            node: part.modules.get(node.target)
            for node in part.graph.nodes
            if node.op == 'call_module'
        }
        for node, layer in called.items():
            if layer is not None and (is_standard_conv(layer) or is_affine_norm(layer)):
                near = [*(node.users if is_standard_conv(layer) else node.all_input_nodes)]
                one = called.get(near[0]) if len(near) == 1 else None
                found[layer] = one if found.get(layer, one) is one else None
        for name in _weight_reads(part):
            found[part.modules.get(name)] = None
    return found


def norms_behind(parts: Iterable[TracedPart]) -> list[tuple[str, str]]:
    """Names of convs and Ghost convs, each with the norm that is its only consumer."""
    return [pair for part in parts for pair in (*_repeated(part), *_pairs(part))]


def _pairs(part: TracedPart) -> Iterator[tuple[str, str]]:
    for node in part.graph.nodes:
        module = unshared_module(part, node)
        if isinstance(module, GHOST_CONVS) or (module is not None and is_standard_conv(module)):
            norm = _norm_behind(part, node)
            if norm is not None:
                yield part.name(node), part.name(norm)


def _norm_behind(part: TracedPart, node: fx.Node) -> fx.Node | None:
    """The norm that is the only consumer of a node, identities skipped."""
    while len(node.users) == 1:
        (node,) = node.users
        module = unshared_module(part, node)
        if module is not None and is_affine_norm(module):
            return node
        if type(module) is not nn.Identity:
            break
    return None


def _repeated(part: TracedPart) -> Iterator[tuple[str, str]]:
    """Convs that run several times, always with the same norm behind, as in detector heads."""
    calls, modules = part.calls, part.modules
    behind: dict[str, set[str]] = {}
    for node in part.graph.nodes:
        if node.op == 'call_module' and calls[node.target] > 1:
            users = [user for user in node.users if user.op == 'call_module']
            only = users[0].target if len(users) == len(node.users) == 1 else ''
            behind.setdefault(node.target, set()).add(only)
    for conv, found in behind.items():
        norm = next(iter(found)) if len(found) == 1 else ''
        pair = f'{part.prefix}{conv}', f'{part.prefix}{norm}'
        if norm and part.unshared.issuperset(pair) and calls[norm] == calls[conv]:
            if is_standard_conv(modules[conv]) and is_affine_norm(modules[norm]):
                yield pair
