"""Elimination of the concatenations of Ghost layers in ONNX graphs.

A runtime copies primary and ghost channels into one tensor, often in another memory layout, before
the next layer reads them. That layer can read both parts instead: a convolution of concatenated
channels is the sum of one convolution per part, and channelwise operators process each part alone.
Other readers get a concatenation.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from .onnx_analysis import Graph, Sizes, split_values

RESIZE_SIZES_INPUT = 3  # index of the input "sizes" of Resize
# With fewer elements a second convolution costs more than the concatenation: GhostNet 1.0x, 224 px,
# batch 1, 2 threads, OpenVINO: 1.10 times as fast with this threshold, 0.99 with 0; V2 1.02 and
# 0.87; at batch 16 1.18 and 1.15.
MIN_ELEMENTS = 120_000


def split_file(
    source: Path,
    target: Path,
    shapes: Sequence[Sequence[int]],
    required: bool = True,
    min_elements: int = MIN_ELEMENTS,
) -> None:
    """Write an ONNX file without its large concatenations of two parts.

    Args:
        source: File with opset 11 or newer.
        target: May be the same file.
        shapes: Shapes of its inputs, which decide what is large; other shapes work, too.
        required: Raise an error if there is no such concatenation; otherwise copy the file.
        min_elements: Smallest size of a concatenated value, in elements.

    Raises:
        ValueError: There is no such concatenation.
    """
    model = onnx.load(source)
    if not eliminate_concats(model, shapes, min_elements) and required:
        raise ValueError(
            'split_concat (--split-concat) finds no concatenation of a Ghost layer that is read by '
            f'convolutions and holds {min_elements:,} elements or more for input shapes '
            f'{[tuple(shape) for shape in shapes]}; give a larger example, or split_concat=False '
            "or 'auto'"
        )
    onnx.save(model, target)


def eliminate_concats(
    model: onnx.ModelProto, shapes: Sequence[Sequence[int]], min_elements: int = 0
) -> int:
    """Eliminate concatenations of two parts, in place.

    Args:
        model: With opset 11 or newer.
        shapes: Shapes of its inputs.
        min_elements: Smallest size of a concatenated value, in elements.

    Returns:
        The number of eliminated concatenations.
    """
    if any(a.HasField('g') or a.graphs for node in model.graph.node for a in node.attribute):
        return 0  # branches and loops may read any value by name
    graph = Graph.from_model(model, shapes)
    writer = _Writer(graph, split_values(graph, min_elements))
    nodes = list(writer.nodes())
    used = {name for node in nodes for name in node.input} | set(graph.outputs)
    kept = [numpy_helper.from_array(v, n) for n, v in graph.constants.items() if n in used]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    return writer.num_split - len(writer.concatenated)


@dataclass
class _Writer:
    """Rewrites the nodes; those of split values once per part.

    Attributes:
        graph: The analysed graph; new constants are added to it.
        splits: Result of :func:`split_values`.
        parts: Names of both parts by the name of the value.
        concatenated: Split values that some node reads as a whole.
        num_split: Number of omitted concatenations.
    """

    graph: Graph
    splits: dict[str, Sizes]
    parts: dict[str, list[str]] = field(default_factory=dict)
    concatenated: set[str] = field(default_factory=set)
    num_split: int = 0

    def nodes(self) -> Iterator[NodeProto]:
        """Yield all nodes of the rewritten graph."""
        for node in self.graph.nodes:
            yield from self._rewritten(node)
        yield from self._concat(self.graph.outputs)

    def _rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        source, out = node.input[0] if node.input else '', node.output[0]
        if out in self.splits and node.op_type == 'Concat':
            yield from self._concat(node.input)
            self.parts[out] = list(node.input)
            self.num_split += 1
        elif self.graph.is_dense(node) and {source, out} & self.splits.keys():
            yield from self._conv(node)
        elif out in self.splits:
            yield from self._channelwise(node)
        elif source in self.splits and self.graph.is_global_pool(node):
            yield from self._pool(node)
        elif source in self.splits and node.op_type == 'Shape' and not node.attribute:
            yield from self._shape(node)
        else:
            yield from self._concat(node.input)
            yield node

    def _concat(self, names: Iterable[str]) -> Iterator[NodeProto]:
        """Concatenate the split values among names, once each."""
        for name in names:
            if name in self.splits and name not in self.concatenated:
                self.concatenated.add(name)
                yield helper.make_node('Concat', self.parts[name], [name], name, axis=1)

    def _conv(self, node: NodeProto) -> Iterator[NodeProto]:
        """Write each part of the output as the sum of one convolution per part of the input."""
        weight, *bias = (self.graph.constants[name] for name in node.input[1:])
        read = self._slices(node.input[0], weight.shape[1])
        for name, rows in self._slices(node.output[0], len(weight)):
            terms = [name] if len(read) == 1 else [f'{name}/term{i}' for i in range(len(read))]
            for term, (source, columns) in zip(terms, read, strict=True):
                own = [weight[rows, columns], *(b[rows] for b in bias if term == terms[0])]
                yield _copy(node, [source, *(self._constant(v, term) for v in own)], term)
            if len(read) > 1:
                yield helper.make_node('Add', terms, [name], name)

    def _channelwise(self, node: NodeProto) -> Iterator[NodeProto]:
        """Write a channelwise node once per part."""
        channels = sum(self.splits[node.output[0]])
        for index, (name, own) in enumerate(self._slices(node.output[0], channels)):
            copy = _copy(node, [self._part(node, v, index, own) for v in node.input], name)
            if node.op_type == 'Conv':
                next(a for a in copy.attribute if a.name == 'group').i = own.stop - own.start
            elif node.op_type == 'Resize' and any(node.input[RESIZE_SIZES_INPUT:]):
                sizes, copy.input[RESIZE_SIZES_INPUT] = (
                    node.input[RESIZE_SIZES_INPUT],
                    f'{name}/sizes',
                )
                yield from self._sizes(sizes, own.stop - own.start, f'{name}/sizes')
            yield copy

    def _part(self, node: NodeProto, value: str, index: int, own: slice) -> str:
        """Return one part of an input; values with one channel broadcast to both parts."""
        if value in self.splits:
            return self.parts[value][index]
        held = self.graph.constants.get(value, np.array(0))
        axis = 0 if node.op_type == 'Conv' else held.ndim - 3
        if axis < 0 or not held.ndim or held.shape[axis] != sum(self.splits[node.output[0]]):
            return value
        return self._constant(held[(slice(None),) * axis + (own,)], f'{value}/{own.start}')

    def _shape(self, node: NodeProto) -> Iterator[NodeProto]:
        """Write the shape of a split value, from the shape of its first part."""
        out = node.output[0]
        yield _copy(node, self.parts[node.input[0]][:1], f'{out}/part')
        yield from self._sizes(f'{out}/part', sum(self.splits[node.input[0]]), out)

    def _sizes(self, sizes: str, channels: int, out: str) -> Iterator[NodeProto]:
        """Write four sizes with another number of channels."""
        ends = [self._constant(np.array([end]), out) for end in (0, 1, 2, 4)]
        parts = [f'{out}/batch', self._constant(np.array([channels]), out), f'{out}/image']
        yield helper.make_node('Slice', [sizes, *ends[:2]], parts[:1], parts[0])
        yield helper.make_node('Slice', [sizes, *ends[2:]], parts[2:], parts[2])
        yield helper.make_node('Concat', parts, [out], out, axis=0)

    def _pool(self, node: NodeProto) -> Iterator[NodeProto]:
        """Pool each part, then concatenate the results."""
        out = node.output[0]
        pooled = [f'{part}/{out}' for part in self.parts[node.input[0]]]
        for part, name in zip(self.parts[node.input[0]], pooled, strict=True):
            yield _copy(node, [part, *node.input[1:]], name)
        yield helper.make_node('Concat', pooled, [out], out, axis=1)

    def _slices(self, value: str, channels: int) -> list[tuple[str, slice]]:
        """Return names and channel ranges of the parts of a value, or of the value itself."""
        if value not in self.splits:
            return [(value, slice(0, channels))]
        own = self.splits[value]
        names = self.parts.setdefault(value, [f'{value}/part{i}' for i in range(len(own))])
        ends = pairwise(accumulate(own, initial=0))
        return [(name, slice(*span)) for name, span in zip(names, ends, strict=True)]

    def _constant(self, value: np.ndarray, base: str) -> str:
        name = f'{base}/constant{len(self.graph.constants)}'
        self.graph.constants[name] = np.ascontiguousarray(value)
        return name


def _copy(node: NodeProto, inputs: Iterable[str], name: str) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = name
    copy.input[:], copy.output[:] = list(inputs), [name]
    return copy
