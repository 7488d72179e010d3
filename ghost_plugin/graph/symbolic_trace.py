"""Networks of anybody's making, followed symbolically: their graphs, and what stands behind a conv.

Where the whole cannot be followed (its control flow looks at values, or at which arguments are
given), its parts are, each alone.
"""

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from ..layers.bn_folding import has_hooks_or_parametrization, is_affine_norm, is_standard_conv
from ..layers.ghost import GhostConv2d
from .folded_ghost import FoldedGhostConv2d

GHOST_CONVS = (GhostConv2d, FoldedGhostConv2d)
_CONSTANT = '_tensor_constant'  # as fx names tensors that a call makes


@dataclass(frozen=True)
class TracedPart:
    """What could be followed of a network.

    Attributes:
        prefix: Of its layers' names in the network, '' for the whole.
        graph: Of one call.
        modules: By their names without the prefix; copies.
        alone: Full names of the modules that stand at one place, without hooks, with weights that
            are not computed and that nobody else has or reads.
        calls: How often each module runs.
    """

    prefix: str
    graph: fx.Graph
    modules: dict[str, nn.Module]
    alone: set[str]
    calls: Counter

    def name(self, node: fx.Node) -> str:
        """The name of a node's module in the network."""
        return f'{self.prefix}{node.target}'

    def single(self, node: fx.Node) -> nn.Module | None:
        """The module of a node, where it runs once and stands at one place."""
        once = node.op == 'call_module' and self.calls[node.target] == 1
        return self.modules[node.target] if once and self.name(node) in self.alone else None


class _Tracer(fx.Tracer):
    """Layers stay whole: convs, Ghost layers, norms and whatever has no parts."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = isinstance(module, (nn.Conv2d, *GHOST_CONVS)) or not any(module.children())
        return whole or is_affine_norm(module)


def trace_parts(model: nn.Module) -> Iterator[TracedPart]:
    """The whole, or those parts that can be followed; the model is not touched."""
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    alone = {
        name
        for name, module in model.named_modules()
        if names[id(module)] == 1
        and not any(has_hooks_or_parametrization(part) for part in module.modules())
        and all(owners[id(p)] == 1 for p in module.parameters())
    }
    # Tracing runs the network's own code, which may keep what it is given.
    for prefix, graph, modules in _graphs(copy.deepcopy(model)):
        calls = Counter(node.target for node in graph.nodes if node.op == 'call_module')
        read = {f'{prefix}{n.target}'.rpartition('.')[0] for n in graph.nodes if n.op == 'get_attr'}
        yield TracedPart(prefix, graph, modules, alone - read, calls)


def _graphs(
    model: nn.Module, prefix: str = ''
) -> Iterator[tuple[str, fx.Graph, dict[str, nn.Module]]]:
    try:
        graph = _graph(model)
    except Exception:  # foreign code, which may raise anything when it sees no numbers
        for name, child in model.named_children():
            if any(child.children()):
                yield from _graphs(child, f'{prefix}{name}.')
        return
    yield prefix, graph, dict(model.named_modules())


def _graph(model: nn.Module) -> fx.Graph:
    """Of a call with all arguments, if one with those alone that have no default runs the same.

    Raises:
        ValueError: It does not.
    """
    graph = _Tracer().trace(model)
    parameters = inspect.signature(model.forward).parameters.items()
    defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
    if defaults:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of values that a graph cannot check
            least = _Tracer().trace(model, concrete_args=defaults)
        given = {node.target for node in graph.nodes if node.op == 'placeholder'}
        if _steps(least, given) != _steps(graph, given):
            raise ValueError('what runs depends on which arguments are given')
    return graph


def _steps(graph: fx.Graph, given: set[str]) -> list[tuple[str, str, str]]:
    """What a graph does with the arguments that are given, whatever its nodes are called."""
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


def conv_norm_neighbours(model: nn.Module) -> dict[nn.Module, nn.Module | None]:
    """What alone takes the maps of a conv, and what alone gives a norm its own, if that is known.

    None stands for several, for what is no layer, and for layers whose weights somebody reads.
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Module | None, nn.Module | None] = {}
    for part in trace_parts(model):
        called = {n: layers.get(part.name(n)) for n in part.graph.nodes if n.op == 'call_module'}
        for node, layer in called.items():
            if layer is not None and (is_standard_conv(layer) or is_affine_norm(layer)):
                near = [*(node.users if is_standard_conv(layer) else node.all_input_nodes)]
                one = called.get(near[0]) if len(near) == 1 else None
                found[layer] = one if found.get(layer, one) is one else None
        reads = [part.name(node) for node in part.graph.nodes if node.op == 'get_attr']
        found |= {layers.get(name.rpartition('.')[0]): None for name in reads}
    return found


def norms_behind(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convs or Ghost convs, each with the norm that stands directly behind it alone."""
    return [pair for part in trace_parts(model) for pair in (*_repeated(part), *_pairs(part))]


def _pairs(part: TracedPart) -> Iterator[tuple[str, str]]:
    for node in part.graph.nodes:
        module = part.single(node)
        if isinstance(module, GHOST_CONVS) or (module is not None and is_standard_conv(module)):
            norm = _behind(part, node)
            if norm is not None:
                yield part.name(node), part.name(norm)


def _behind(part: TracedPart, node: fx.Node) -> fx.Node | None:
    """The norm that takes the maps of a node, through nothing that changes them."""
    while len(node.users) == 1:
        (node,) = node.users
        module = part.single(node)
        if module is not None and is_affine_norm(module):
            return node
        if type(module) is not nn.Identity:
            break
    return None


def _repeated(part: TracedPart) -> Iterator[tuple[str, str]]:
    """Convs that run several times, each time with the same norm behind: heads of detectors."""
    calls, modules = part.calls, part.modules
    behind: dict[str, set[str]] = {}
    for node in part.graph.nodes:
        if (
            node.op == 'call_module'
            and calls[node.target] > 1
            and is_standard_conv(modules[node.target])
        ):
            users = [user for user in node.users if user.op == 'call_module']
            only = users[0].target if len(users) == len(node.users) == 1 else ''
            behind.setdefault(node.target, set()).add(only)
    for conv, found in behind.items():
        norm = next(iter(found)) if len(found) == 1 else ''
        known = norm and is_affine_norm(modules[norm]) and calls[norm] == calls[conv]
        pair = f'{part.prefix}{conv}', f'{part.prefix}{norm}'
        if known and part.alone.issuperset(pair):
            yield pair
