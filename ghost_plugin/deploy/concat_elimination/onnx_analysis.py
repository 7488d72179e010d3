"""Analysis of ONNX graphs: constants, shapes, and the values that can stay in two parts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

# Operators that process each channel alone; the first input holds the channels.
_CHANNELWISE = frozenset(
    'Relu LeakyRelu PRelu Elu Clip Sigmoid HardSigmoid HardSwish Tanh Softplus Mish Identity '
    'MaxPool AveragePool Resize'.split()
)
_ELEMENTWISE = frozenset('Add Sub Mul Div'.split())
_POOLS = frozenset('GlobalAveragePool GlobalMaxPool'.split())
_CHANNEL_AXES = (1, -3)
Sizes = tuple[int, ...]


@dataclass
class Graph:
    """An ONNX graph with known constants and shapes.

    Attributes:
        nodes: In execution order, without constants.
        inputs: Names.
        outputs: Names.
        constants: Values by name.
        shapes: Shapes of 4-D values by name; 0 for an unknown size.
    """

    nodes: list[NodeProto]
    inputs: list[str]
    outputs: list[str]
    constants: dict[str, np.ndarray]
    shapes: dict[str, list[int]]

    @classmethod
    def from_model(cls, model: onnx.ModelProto, shapes: Sequence[Sequence[int]]) -> 'Graph':
        """Analyse a model for inputs of the given shapes.

        Args:
            model: With opset 11 or newer.
            shapes: One per input.
        """
        graph = _sized(model, shapes)
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        nodes = []
        for node in graph.node:
            if node.op_type == 'Constant' and node.attribute[0].name == 'value':
                held[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == 'Identity' and node.input[0] in held:  # shared constants
                held[node.output[0]] = held[node.input[0]]
            else:
                nodes.append(node)
        values = (*graph.input, *graph.value_info, *graph.output)
        dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        known = {name: sizes for name, sizes in dims.items() if len(sizes) == 4}
        inputs = [value.name for value in graph.input if value.name not in held]
        found = cls(nodes, inputs, [value.name for value in graph.output], held, known)
        for node in nodes:  # shape inference loses channels behind computed sizes
            source, out = node.input[:1], node.output[0]
            if not found.channels(out) and source and found.is_channelwise(node):
                known[out] = [0, found.channels(source[0]), 0, 0]
        return found

    def channels(self, name: str) -> int:
        """Return the number of channels of a value; 0 if it is unknown."""
        return self.shapes.get(name, [0, 0])[1]

    def max_elements(self, names: Iterable[str]) -> int:
        """Return the number of elements of the largest of these values."""
        return max(math.prod(self.shapes.get(name, [0])) for name in names)

    def is_dense(self, node: NodeProto) -> bool:
        """Return whether a node is a convolution with one group."""
        return self._is_conv(node) and attribute(node, 'group', 1) == 1

    def is_channelwise(self, node: NodeProto) -> bool:
        """Return whether a node computes each channel from the same channel of its input only."""
        if self._is_conv(node):
            rows, columns = self.constants[node.input[1]].shape[:2]
            return columns == 1 and rows == attribute(node, 'group', 1) > 1
        axes = any(a.name == 'axes' for a in node.attribute)
        return node.op_type in _CHANNELWISE and len(node.output) == 1 and not axes

    def is_global_pool(self, node: NodeProto) -> bool:
        """Return whether a node reduces each channel to one value."""
        if node.op_type != 'ReduceMean':
            return node.op_type in _POOLS
        axes = [list(a.ints) for a in node.attribute if a.name == 'axes']
        axes += [self.constants[n].tolist() for n in node.input[1:] if n in self.constants]
        return bool(axes) and {axis % 4 for axis in axes[0]} <= {2, 3}

    def is_concat(self, node: NodeProto) -> bool:
        """Return whether a node concatenates the channels of two values."""
        two = node.op_type == 'Concat' and len(node.input) == 2
        return two and attribute(node, 'axis', 0) in _CHANNEL_AXES

    def coupled_inputs(self, node: NodeProto) -> list[str]:
        """List the inputs that must be split exactly if the output is."""
        if self.is_channelwise(node):
            return [node.input[0]]
        if node.op_type not in _ELEMENTWISE:
            return []
        broadcast = self.channels(node.output[0]) != 1
        read = [name for name in node.input if name not in self.constants]
        return [name for name in read if not (broadcast and self.channels(name) == 1)]

    def _is_conv(self, node: NodeProto) -> bool:
        return node.op_type == 'Conv' and all(name in self.constants for name in node.input[1:])


def attribute(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node.

    Args:
        node: The node.
        name: Of the attribute.
        default: Value without such an attribute.
    """
    return next((a.i for a in node.attribute if a.name == name), default)


def _sized(model: onnx.ModelProto, shapes: Sequence[Sequence[int]]) -> onnx.GraphProto:
    """Infer the shapes of all values from those of the inputs."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    for value, shape in zip(known.graph.input, shapes, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
    return onnx.shape_inference.infer_shapes(known, data_prop=True).graph


def split_values(graph: Graph, min_elements: int) -> dict[str, Sizes]:
    """Select the values that stay in two parts instead of being concatenated.

    Coupled values form groups; either all values of a group are split in the same way, or none.

    Args:
        graph: The analysed graph.
        min_elements: Groups whose largest value has fewer elements are not split.

    Returns:
        Channels of both parts by the name of the value.
    """
    pairs = {node.output[0]: node.input for node in graph.nodes if graph.is_concat(node)}
    read = {node.input[0] for node in graph.nodes if graph.is_dense(node)}
    unsplit = set(graph.inputs)
    for node in graph.nodes:
        if not (graph.is_dense(node) or graph.is_concat(node) or graph.coupled_inputs(node)):
            unsplit.update(node.output)
    found = {}
    for members in _coupled_groups(graph):
        sizes = {tuple(map(graph.channels, pairs[name])) for name in members & pairs.keys()}
        if len(sizes) != 1 or members & unsplit or not members & read:
            continue
        (own,) = sizes
        even = all(own) and all(graph.channels(name) == sum(own) for name in members)
        if even and graph.max_elements(members) >= min_elements:
            found.update(dict.fromkeys(members, own))
    return found


def _coupled_groups(graph: Graph) -> list[set[str]]:
    """Group the values that must be split in the same way."""
    group: dict[str, set[str]] = {}
    for node in graph.nodes:
        for name in node.output:
            group.setdefault(name, {name})
        names = (node.output[0], *graph.coupled_inputs(node))
        merged = set().union(*(group.get(name, {name}) for name in names))
        group.update(dict.fromkeys(merged, merged))
    return list({id(members): members for members in group.values()}.values())
