"""Maps that several layers write and read, with their channels in the order that is cheapest.

A converted conv puts its maps back into the order of the conv it stands for, which is a pass over
them. Inside of a network any order will do, as long as all that write and read the same maps agree.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..layers.bn_folding import is_affine_norm, is_standard_conv
from .symbolic_trace import GHOST_CONVS, TracedPart, trace_parts

# What treats each channel alone: maps may pass through it in another order.
CHANNELWISE = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Mish, nn.Hardswish, nn.Hardtanh,
    nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Upsample,
    F.relu, F.relu6, F.leaky_relu, F.silu, F.gelu, F.elu, F.mish, F.hardswish, F.hardtanh,
    F.hardsigmoid, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.interpolate,
    torch.relu, torch.sigmoid, torch.tanh,
    'relu', 'relu_', 'sigmoid', 'tanh', 'contiguous',
}  # fmt: skip
# What takes several maps of the same channels, or a number.
TOGETHER = {
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, 'add', 'add_', 'sub', 'mul', 'mul_', 'div',
}  # fmt: skip
_MEANS, _FLATTENS = {torch.mean, 'mean'}, {torch.flatten, 'flatten'}
_FACTS = {'shape', 'dtype', 'device', 'ndim'}  # of a tensor, that tell nothing of its values


@dataclass(eq=False)
class ChannelGroup:
    """Maps whose channels have one order.

    Attributes:
        writers: Names of the convs that make them.
        readers: Names of the convs and linear layers that take all their channels.
        between: Names of layers with weights for each channel alone.
        sizes: Numbers of channels that these have.
        pinned: Whether something takes the maps that could not be followed.
    """

    writers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    between: list[str] = field(default_factory=list)
    sizes: set[int] = field(default_factory=set)
    pinned: bool = False

    def take(self, other: 'ChannelGroup') -> None:
        """Become one with another stream."""
        self.writers += other.writers
        self.readers += other.readers
        self.between += other.between
        self.sizes |= other.sizes
        self.pinned |= other.pinned


class _ChannelGroupBuilder:
    """The streams of one graph, node after node."""

    def __init__(self, part: TracedPart) -> None:
        self.part = part
        self.of: dict[fx.Node, ChannelGroup] = {}
        for node in part.graph.nodes:
            self.of[node] = self._stream(node)

    def _stream(self, node: fx.Node) -> ChannelGroup:
        kind = self._kind(node)
        module = self.part.single(node)
        given = [self.of[x] for x in node.all_input_nodes]
        if _mixes(module):
            self._read(given[0], node, module)
            return ChannelGroup(writers=[self.part.name(node)], sizes={module.out_channels})
        if module is not None and _alone(module):
            given[0].between.append(self.part.name(node))
            given[0].sizes.add(_channels(module))
            return given[0]
        if kind in TOGETHER:
            return self._together(given)
        if kind in CHANNELWISE or (kind in _MEANS and _keeps(node)):
            return given[0]
        if not (_asks(node) or self._head(node, given)):
            for stream in given:
                stream.pinned = True
        return ChannelGroup(pinned=True)

    def _kind(self, node: fx.Node) -> type | Callable | str | None:
        if node.op == 'call_module':
            return type(self.part.modules[node.target])
        return node.target if node.op in ('call_function', 'call_method') else None

    def _read(self, stream: ChannelGroup, node: fx.Node, module: nn.Module) -> None:
        if getattr(module, 'groups', 1) == 1:
            stream.readers.append(self.part.name(node))
            stream.sizes.add(_inputs(module))
        else:
            stream.pinned = True

    def _together(self, given: list[ChannelGroup]) -> ChannelGroup:
        first, *others = given
        for other in others:
            if other is not first:
                first.take(other)
                self.of.update({node: first for node, own in self.of.items() if own is other})
        return first

    def _head(self, node: fx.Node, given: list[ChannelGroup]) -> bool:
        """Whether one value per channel is left here, and only linear layers read it."""
        if not _pools(node, self.part.single(node)):
            return False
        readers = [*self._beyond(node)]
        if any(type(self.part.single(n)) is not nn.Linear for n in readers):
            return False
        for reader in readers:
            self._read(given[0], reader, self.part.single(reader))
        return True

    def _beyond(self, node: fx.Node) -> Iterator[fx.Node]:
        """What takes a node, behind what does nothing."""
        for user in node.users:
            idle = type(self.part.single(user)) is nn.Identity
            yield from self._beyond(user) if idle else (user,)


def _mixes(module: nn.Module | None) -> bool:
    """Whether each of its maps comes from many, and their order can be chosen."""
    if isinstance(module, GHOST_CONVS):
        return True
    return module is not None and is_standard_conv(module) and module.groups == 1


def _alone(module: nn.Module) -> bool:
    """Whether it has weights for each channel alone."""
    if is_standard_conv(module):
        return module.groups == module.in_channels == module.out_channels
    return is_affine_norm(module)


def _channels(module: nn.Module) -> int:
    return module.out_channels if is_standard_conv(module) else len(module.running_mean)


def _inputs(module: nn.Module) -> int:
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


def _keeps(node: fx.Node) -> bool:
    """Whether a mean keeps (N, C, 1, 1)."""
    return bool(_given(node, 2, 'keepdim', False)) and _sides(node)


def _pools(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether (N, C) is left, of (N, C, H, W) or, for sizes fit only then, of (N, C, 1, 1)."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in _FLATTENS:
        ends = _given(node, 1, 'start_dim', 0), _given(node, 2, 'end_dim', -1)
        return ends == (1, -1)
    return node.target in _MEANS and _sides(node)


def _sides(node: fx.Node) -> bool:
    return all_pixels(_given(node, 1, 'dim', ()))


def all_pixels(axes: Any) -> bool:
    """Whether these are the axes of height and width of (N, C, H, W)."""
    return isinstance(axes, tuple | list) and sorted(axis % 4 for axis in axes) == [2, 3]


def _asks(node: fx.Node) -> bool:
    """Whether a node asks about a tensor, and not for its values."""
    return node.target in ('size', 'dim') or (node.target is getattr and node.args[1] in _FACTS)


def _given(node: fx.Node, place: int, name: str, otherwise: Any) -> Any:
    """An argument of a call."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, otherwise)


def absorb_permutations(model: nn.Module) -> int:
    """Reorder channels until as few stored orders as possible are left, in place.

    Returns:
        Orders that are gone.
    """
    for part in trace_parts(model):
        places = [part.name(node) for node in part.graph.nodes if node.op == 'call_module']
        for stream in dict.fromkeys(_ChannelGroupBuilder(part).of.values()):
            if not stream.pinned and len(stream.sizes) == 1:
                # Of orders that are equally common the first goes: a stem's maps are the largest.
                stream.writers.sort(key=places.index)
                _reorder(model, stream)
    ghosts = [m for m in model.modules() if isinstance(m, GHOST_CONVS)]
    return sum(_forget(ghost) for ghost in ghosts)


@torch.no_grad()
def _reorder(model: nn.Module, stream: ChannelGroup) -> None:
    """Put the channels into the order of most of those that write them."""
    writers = [model.get_submodule(name) for name in stream.writers]
    ghosts = [w for w in writers if isinstance(w, GHOST_CONVS)]
    if not ghosts or any(ghost.order is None for ghost in ghosts):
        return
    orders = Counter(tuple(ghost.order.tolist()) for ghost in ghosts)
    # Where some of the last maps are used and some of the first are not, no order does it.
    whole = [order for order, _ in orders.most_common() if sorted(order) == [*range(len(order))]]
    if not whole:
        return
    back = torch.tensor(whole[0], device=ghosts[0].order.device).argsort()
    for writer in writers:
        if writer in ghosts:
            writer.order = writer.order[back]
        else:
            _permute(writer, back)
    for name in stream.between:
        _permute(model.get_submodule(name), back)
    for name in stream.readers:
        reader = model.get_submodule(name)
        weight = getattr(reader, 'primary_conv', reader).weight
        weight.copy_(weight[:, back])


def _permute(module: nn.Module, back: torch.Tensor) -> None:
    """What a layer holds for each of its channels."""
    for value in (*module.parameters(), *module.buffers()):
        if value.dim() and len(value) == len(back):
            value.copy_(value[back])


def _forget(ghost: nn.Module) -> bool:
    """Leave out an order that changes nothing."""
    order = ghost.order
    if order is None or not torch.equal(order, torch.arange(len(order), device=order.device)):
        return False
    ghost.order, ghost.needs_crop = None, ghost.num_computed() > len(order)
    return True
