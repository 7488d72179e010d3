"""What an ONNX graph tells of its values: constants, sizes, and which may be in halves."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

# What treats each map alone, whatever the others are; its first input holds the maps.
_EACH = frozenset(
    'Relu LeakyRelu PRelu Elu Clip Sigmoid HardSigmoid HardSwish Tanh Softplus Mish Identity '
    'MaxPool AveragePool Resize'.split()
)
_PAIRED = frozenset('Add Sub Mul Div'.split())  # map by map
_POOLS = frozenset('GlobalAveragePool GlobalMaxPool'.split())
_OF_MAPS = (1, -3)  # the axis of maps
Sizes = tuple[int, ...]


@dataclass
class Graph:
    """What is asked of a graph.

    Attributes:
        nodes: In the order in which they run, without those that only hold a constant.
        inputs, outputs: Names.
        constants: By name.
        shapes: Of what has four axes, by name; 0 where a size is not known.
    """

    nodes: list[NodeProto]
    inputs: list[str]
    outputs: list[str]
    constants: dict[str, np.ndarray]
    shapes: dict[str, list[int]]

    @classmethod
    def of(cls, model: onnx.ModelProto, shapes: Sequence[Sequence[int]]) -> 'Graph':
        """The graph of a model, for inputs of some shapes."""
        graph = _sized(model, shapes)
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        nodes = []
        for node in graph.node:
            if node.op_type == 'Constant' and node.attribute[0].name == 'value':
                held[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == 'Identity' and node.input[0] in held:  # equal constants are one
                held[node.output[0]] = held[node.input[0]]
            else:
                nodes.append(node)
        values = (*graph.input, *graph.value_info, *graph.output)
        dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        known = {name: sizes for name, sizes in dims.items() if len(sizes) == 4}
        inputs = [value.name for value in graph.input if value.name not in held]
        found = cls(nodes, inputs, [value.name for value in graph.output], held, known)
        for node in nodes:  # sizes that are computed hide the number of maps from ONNX
            source, out = node.input[:1], node.output[0]
            if not found.maps(out) and source and found.treats_each(node):
                known[out] = [0, found.maps(source[0]), 0, 0]
        return found

    def maps(self, name: str) -> int:
        """Maps of a value, 0 if it has none or nobody knows."""
        return self.shapes.get(name, [0, 0])[1]

    def numbers(self, names: Iterable[str]) -> int:
        """How many numbers the largest of these values holds."""
        return max(math.prod(self.shapes.get(name, [0])) for name in names)

    def is_dense(self, node: NodeProto) -> bool:
        """Whether it is a conv in which every map sees every other."""
        return self._is_conv(node) and attribute(node, 'group', 1) == 1

    def treats_each(self, node: NodeProto) -> bool:
        """Whether it makes each map from the one at the same place, and from no other."""
        if self._is_conv(node):
            rows, columns = self.constants[node.input[1]].shape[:2]
            return columns == 1 and rows == attribute(node, 'group', 1) > 1
        axes = any(a.name == 'axes' for a in node.attribute)
        return node.op_type in _EACH and len(node.output) == 1 and not axes

    def pools(self, node: NodeProto) -> bool:
        """Whether it makes one value of each map; these are so few that they are joined again."""
        if node.op_type != 'ReduceMean':
            return node.op_type in _POOLS
        axes = [list(a.ints) for a in node.attribute if a.name == 'axes']
        axes += [self.constants[n].tolist() for n in node.input[1:] if n in self.constants]
        return bool(axes) and {axis % 4 for axis in axes[0]} <= {2, 3}

    def is_pair(self, node: NodeProto) -> bool:
        """Whether it joins the maps of two values."""
        two = node.op_type == 'Concat' and len(node.input) == 2
        return two and attribute(node, 'axis', 0) in _OF_MAPS

    def alike(self, node: NodeProto) -> list[str]:
        """Those of its inputs that are in halves if its output is, and the other way round."""
        if self.treats_each(node):
            return [node.input[0]]
        if node.op_type not in _PAIRED:
            return []
        one_for_all = self.maps(node.output[0]) != 1
        read = [name for name in node.input if name not in self.constants]
        return [name for name in read if not (one_for_all and self.maps(name) == 1)]

    def _is_conv(self, node: NodeProto) -> bool:
        return node.op_type == 'Conv' and all(name in self.constants for name in node.input[1:])


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer of a node."""
    return next((a.i for a in node.attribute if a.name == name), default)


def _sized(model: onnx.ModelProto, shapes: Sequence[Sequence[int]]) -> onnx.GraphProto:
    """The graph with the shapes of its values, as far as those of its inputs tell them."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    for value, shape in zip(known.graph.input, shapes, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
    return onnx.shape_inference.infer_shapes(known, data_prop=True).graph


def layouts(graph: Graph, least: int) -> dict[str, Sizes]:
    """Sizes of the halves of every value that is in halves.

    Values that must be alike are taken together: all of them have the same halves, or none has.

    Args:
        graph: Of two-part concatenations and what reads them.
        least: Numbers in the largest of such values; with fewer they are whole.
    """
    pairs = {node.output[0]: node.input for node in graph.nodes if graph.is_pair(node)}
    read = {node.input[0] for node in graph.nodes if graph.is_dense(node)}
    whole = set(graph.inputs)
    for node in graph.nodes:
        if not (graph.is_dense(node) or graph.is_pair(node) or graph.alike(node)):
            whole.update(node.output)
    found = {}
    for members in _together(graph):
        sizes = {tuple(map(graph.maps, pairs[name])) for name in members & pairs.keys()}
        if len(sizes) != 1 or members & whole or not members & read:
            continue
        (own,) = sizes
        even = all(own) and all(graph.maps(name) == sum(own) for name in members)
        if even and graph.numbers(members) >= least:
            found.update(dict.fromkeys(members, own))
    return found


def _together(graph: Graph) -> list[set[str]]:
    """Sets of values that must be alike."""
    group: dict[str, set[str]] = {}
    for node in graph.nodes:
        for name in node.output:
            group.setdefault(name, {name})
        names = (node.output[0], *graph.alike(node))
        merged = set().union(*(group.get(name, {name}) for name in names))
        group.update(dict.fromkeys(merged, merged))
    return list({id(members): members for members in group.values()}.values())
