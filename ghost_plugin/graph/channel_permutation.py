"""Channel permutations moved into the layers around them, as far as a model's graph allows.

A converted conv returns its channels in the order of the conv that it replaces, which costs a pass
over them. Inside a network any order will do if all layers that produce and consume the same
channels agree on it.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..layers.bn_folding import is_affine_norm, is_standard_conv
from .symbolic_trace import GHOST_CONVS, TracedPart, trace_parts, unshared_module

# Operations that treat each channel on its own: permuted channels may pass through them.
CHANNELWISE = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Mish, nn.Hardswish, nn.Hardtanh,
    nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Upsample,
    F.relu, F.relu6, F.leaky_relu, F.silu, F.gelu, F.elu, F.mish, F.hardswish, F.hardtanh,
    F.hardsigmoid, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.interpolate,
    torch.relu, torch.sigmoid, torch.tanh,
    'relu', 'relu_', 'sigmoid', 'tanh', 'contiguous',
}  # fmt: skip
# Operations on several tensors of the same channels, or on a tensor and a number.
TOGETHER = {
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, 'add', 'add_', 'sub', 'mul', 'mul_', 'div',
}  # fmt: skip
_MEANS, _FLATTENS = {torch.mean, 'mean'}, {torch.flatten, 'flatten'}
_METADATA = {'shape', 'dtype', 'device', 'ndim'}  # attributes that do not depend on values


@dataclass(eq=False)
class ChannelGroup:
    """Layers whose channels must have one order.

    Attributes:
        producers: Names of the convs that compute the channels.
        consumers: Names of the convs and linear layers that read all of them.
        per_channel: Names of layers with weights for each channel.
        sizes: Numbers of channels of these layers.
        pinned: True if the channels reach something that must see them in their order.
    """

    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    per_channel: list[str] = field(default_factory=list)
    sizes: set[int] = field(default_factory=set)
    pinned: bool = False

    def merge(self, other: 'ChannelGroup') -> None:
        """Take over the layers of another group."""
        self.producers += other.producers
        self.consumers += other.consumers
        self.per_channel += other.per_channel
        self.sizes |= other.sizes
        self.pinned |= other.pinned


class _ChannelGroupBuilder:
    """Builds the channel groups of one graph, node after node."""

    def __init__(self, part: TracedPart) -> None:
        self.part = part
        self.group_of: dict[fx.Node, ChannelGroup] = {}
        for node in part.graph.nodes:
            self.group_of[node] = self._group(node)

    def _group(self, node: fx.Node) -> ChannelGroup:
        kind = self._kind(node)
        module = unshared_module(self.part, node)
        inputs = [self.group_of[x] for x in node.all_input_nodes]
        if isinstance(module, GHOST_CONVS) or (_is_conv(module) and module.groups == 1):
            self._add_consumer(inputs[0], node, module)
            return ChannelGroup(producers=[self.part.name(node)], sizes={module.out_channels})
        size = _per_channel_size(module)
        if size:
            inputs[0].per_channel.append(self.part.name(node))
            inputs[0].sizes.add(size)
            return inputs[0]
        if kind in TOGETHER:
            return self._merged(inputs)
        if kind in CHANNELWISE:
            return inputs[0]
        if kind in _MEANS and _argument(node, 2, 'keepdim', False) and _is_spatial_mean(node):
            return inputs[0]
        metadata = node.target in ('size', 'dim') or (
            node.target is getattr and node.args[1] in _METADATA
        )
        if not (metadata or self._is_head(node, inputs)):
            for group in inputs:
                group.pinned = True
        return ChannelGroup(pinned=True)

    def _kind(self, node: fx.Node) -> type | Callable | str | None:
        if node.op == 'call_module':
            return type(self.part.modules.get(node.target))
        return node.target if node.op in ('call_function', 'call_method') else None

    def _add_consumer(self, group: ChannelGroup, node: fx.Node, module: nn.Module) -> None:
        if getattr(module, 'groups', 1) == 1:
            group.consumers.append(self.part.name(node))
            linear = isinstance(module, nn.Linear)
            group.sizes.add(module.in_features if linear else module.in_channels)
        else:
            group.pinned = True

    def _merged(self, groups: list[ChannelGroup]) -> ChannelGroup:
        first, *others = groups
        for other in others:
            if other is not first:
                first.merge(other)
                moved = {node: first for node, own in self.group_of.items() if own is other}
                self.group_of.update(moved)
        return first

    def _is_head(self, node: fx.Node, inputs: list[ChannelGroup]) -> bool:
        """Add linear layers as consumers, if they alone read one value per channel."""
        if not _pools(node, unshared_module(self.part, node)):
            return False
        readers = [*self._readers(node)]
        if any(type(unshared_module(self.part, n)) is not nn.Linear for n in readers):
            return False
        for reader in readers:
            self._add_consumer(inputs[0], reader, unshared_module(self.part, reader))
        return True

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """The users of a node, identities skipped."""
        for user in node.users:
            idle = type(unshared_module(self.part, user)) is nn.Identity
            yield from self._readers(user) if idle else (user,)


def _is_conv(module: nn.Module | None) -> bool:
    return module is not None and is_standard_conv(module)


def _per_channel_size(module: nn.Module | None) -> int:
    """Channels of a depthwise conv or norm; 0 for other modules."""
    if _is_conv(module):
        depthwise = module.groups == module.in_channels == module.out_channels
        return module.out_channels if depthwise else 0
    return len(module.running_mean) if module is not None and is_affine_norm(module) else 0


def _pools(node: fx.Node, module: nn.Module | None) -> bool:
    """True if (N, C) is left of (N, C, H, W), or of (N, C, 1, 1), as no other size fits then."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in _FLATTENS:
        ends = _argument(node, 1, 'start_dim', 0), _argument(node, 2, 'end_dim', -1)
        return ends == (1, -1)
    return node.target in _MEANS and _is_spatial_mean(node)


def _is_spatial_mean(node: fx.Node) -> bool:
    """True if a mean is over height and width of (N, C, H, W)."""
    axes = _argument(node, 1, 'dim', ())
    return isinstance(axes, tuple | list) and sorted(axis % 4 for axis in axes) == [2, 3]


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def channel_groups(
    model: nn.Module, parts: Iterable[TracedPart] | None = None
) -> list[ChannelGroup]:
    """Find the layers that can take another order of their channels together.

    Args:
        model: In eval mode.
        parts: Its traced graphs, with its current modules; None traces it.
    """
    found = []
    for part in trace_parts(model) if parts is None else parts:
        nodes = enumerate(part.graph.nodes)
        places = {part.name(node): i for i, node in nodes if node.op == 'call_module'}
        for group in dict.fromkeys(_ChannelGroupBuilder(part).group_of.values()):
            if not group.pinned and len(group.sizes) == 1:
                # Of equally common permutations the first goes: a stem's outputs are the largest.
                group.producers.sort(key=places.__getitem__)
                found.append(group)
    return found


def shortcut_ghosts(model: nn.Module) -> list[list[str]]:
    """Find Ghost convs whose outputs a shortcut adds and that can have one permutation.

    Args:
        model: In eval mode.

    Returns:
        Names, two or more in each list. Of Ghost convs of unlike layouts in one channel group the
        most that are alike: the permutations of the others stay in any case.
    """
    found = []
    for group in channel_groups(model):
        alike: dict[Any, list[str]] = {}
        for name in group.producers:
            ghost = model.get_submodule(name)
            if isinstance(ghost, GHOST_CONVS) and ghost.ghosts_per_group:
                # No permutation goes that selects some of the channels.
                if ghost.num_computed() == ghost.out_channels:
                    alike.setdefault(_layout(ghost), []).append(name)
        most = max(alike.values(), key=len, default=[])
        if len(most) > 1:
            found.append(most)
    return found


def _layout(ghost: nn.Module) -> tuple[int, ...]:
    """Values that Ghost convs of one permutation have in common."""
    if ghost.group_size == ghost.primary:
        return (0,)  # the first channels, as many as wanted, may be the primary ones
    return ghost.groups, ghost.primary, ghost.num_ghosted, ghost.group_size


def absorb_permutations(model: nn.Module, parts: Iterable[TracedPart] | None = None) -> int:
    """Reorder channels until as few permutations as possible are left, in place.

    Args:
        model: In eval mode.
        parts: Its traced graphs, with its current modules; None traces it.

    Returns:
        Number of permutations that are gone.
    """
    for group in channel_groups(model, parts):
        _reorder(model, group)
    ghosts = [m for m in model.modules() if isinstance(m, GHOST_CONVS)]
    return sum(_drop_identity(ghost) for ghost in ghosts)


@torch.no_grad()
def _reorder(model: nn.Module, group: ChannelGroup) -> None:
    """Bring the channels into the most common order of the group's producers."""
    producers = [model.get_submodule(name) for name in group.producers]
    ghosts = [p for p in producers if isinstance(p, GHOST_CONVS)]
    if not ghosts or any(ghost.order is None for ghost in ghosts):
        return
    orders = Counter(tuple(ghost.order.tolist()) for ghost in ghosts)
    # Where some of the last channels are used and some of the first are not, no order fits.
    whole = [order for order, _ in orders.most_common() if sorted(order) == [*range(len(order))]]
    if not whole:
        return
    inverse = torch.tensor(whole[0], device=ghosts[0].order.device).argsort()
    for producer in producers:
        if producer in ghosts:
            producer.order = producer.order[inverse]
        else:
            _permute(producer, inverse)
    for name in group.per_channel:
        _permute(model.get_submodule(name), inverse)
    for name in group.consumers:
        consumer = model.get_submodule(name)
        weight = getattr(consumer, 'primary_conv', consumer).weight
        weight.copy_(weight[:, inverse])


def _permute(module: nn.Module, order: torch.Tensor) -> None:
    """Permute the parameters and buffers that hold one row per channel."""
    for value in (*module.parameters(), *module.buffers()):
        if value.dim() and len(value) == len(order):
            value.copy_(value[order])


def _drop_identity(ghost: nn.Module) -> bool:
    """Remove a permutation that changes nothing; True if there was one."""
    order = ghost.order
    if order is None or not torch.equal(order, torch.arange(len(order), device=order.device)):
        return False
    ghost.order, ghost.needs_crop = None, ghost.num_computed() > len(order)
    return True
