"""Shortcuts: tensors that are added to the output of a conv and are known before it runs."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..layers.bn_folding import is_affine_norm, leftover_module
from ..utils.modules import is_dropout
from .symbolic_trace import TracedPart, trace_parts

_ADDITIONS = {operator.add, operator.iadd, torch.add, 'add', 'add_'}


@dataclass(frozen=True)
class Shortcut:
    """Tensor that is added to the output of a layer.

    Attributes:
        source: Name of a module that runs before the addition.
        is_input: Whether the shortcut comes from the first argument of the source, or from its
            output.
        steps: From there to the addition, without weights, in the order of the call.
        modules: Modules that the steps call, by the names they have there.
    """

    source: str
    is_input: bool
    steps: tuple[fx.Node, ...]
    modules: Mapping[str, nn.Module]

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """The shortcut.

        Args:
            x: (N, ...) of the source; steps in place write into a copy.
        """
        x = x.clone() if self.steps else x
        for step in self.steps:
            args, kwargs = fx.map_arg((step.args, step.kwargs), lambda _, x=x: x)
            if step.op == 'call_module':
                x = self.modules[str(step.target)](*args, **kwargs)
            elif step.op == 'call_method':
                x = getattr(args[0], str(step.target))(*args[1:], **kwargs)
            else:
                function: Any = step.target
                x = function(*args, **kwargs)
        return x


def find_shortcuts(model: nn.Module, norms: Mapping[str, str]) -> dict[str, Shortcut]:
    """Find the layers whose outputs are added to something that is known before they run.

    Args:
        model: In eval mode; it is only read.
        norms: Name of the norm behind a layer, '' if there is none, by the layer's name.

    Returns:
        By the layer's name. Nothing but this norm stands between the layer and the addition.
    """
    found = {}
    for part in trace_parts(model):
        place = {node: index for index, node in enumerate(part.graph.nodes)}
        for node in part.graph.nodes:
            if node.op == 'call_module' and part.calls[node.target] == 1:
                norm = norms.get(part.name(node))
                other = None if norm is None else _other_operand(part, node, norm)
                shortcut = other and _shortcut(part, place, node, other)
                if shortcut:
                    found[part.name(node)] = shortcut
    return found


def _other_operand(part: TracedPart, node: fx.Node, norm: str) -> fx.Node | None:
    """Find what the output of a node is added to, behind its norm."""
    missing = norm
    while len(node.users) == 1:
        (user,) = node.users
        if user.target in _ADDITIONS:
            first, second = (*user.args, None, None)[:2]
            other = second if first is node else first
            plain = not user.kwargs and isinstance(other, fx.Node) and other is not node
            return other if plain and not missing else None
        module = part.modules.get(str(user.target)) if user.op == 'call_module' else None
        if module is not None and missing and part.name(user) == missing:
            if not is_affine_norm(module) or not _is_no_op(leftover_module(module)):
                return None
            missing = ''
        elif module is None or not _is_no_op(module):
            return None
        node = user
    return None


def _is_no_op(module: nn.Module) -> bool:
    empty = isinstance(module, nn.Sequential) and not len(module)
    return empty or type(module) is nn.Identity or is_dropout(module)


def _shortcut(
    part: TracedPart, place: Mapping[fx.Node, int], node: fx.Node, other: fx.Node
) -> Shortcut | None:
    """Go back from the other operand to the input or output of a module that runs before a node."""
    steps: list[fx.Node] = []
    while True:
        for source, is_input in ((other, False), *((reader, True) for reader in _readers(other))):
            called = source.op == 'call_module' and part.calls[str(source.target)] == 1
            # The node's own input is known before it runs.
            if called and place[source] < place[node] + is_input:
                return Shortcut(part.name(source), is_input, tuple(steps), part.modules)
        module = part.modules.get(str(other.target)) if other.op == 'call_module' else None
        weighted = module is not None and any(True for _ in module.parameters())
        known = other.op in ('call_module', 'call_method', 'call_function')
        if not known or weighted or len(other.all_input_nodes) != 1:
            return None
        steps.insert(0, other)
        (other,) = other.all_input_nodes


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Modules that are called with an output, also behind functions that write into it."""
    for user in node.users:
        first = user.args and user.args[0] is node
        if first and user.op == 'call_module':
            yield user
        elif first and getattr(user.target, '__name__', str(user.target)).endswith('_'):
            yield from _readers(user)
