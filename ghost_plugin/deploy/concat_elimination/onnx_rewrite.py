"""ONNX graphs in which the halves of Ghost layers go their own ways instead of being joined.

A runtime copies both halves into one tensor, often into another layout, before the next layer reads
them. That layer can read them where they are: a conv of joined maps is the sum of one conv per
half, and what treats each map alone treats each half alone. Where neither holds they are joined.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from .onnx_analysis import Graph, Sizes, layouts

SIZES_OF_RESIZE = 3  # the place of that input
# Numbers below which a second conv costs more than a concatenation: GhostNet 1.0x at 224 px, batch
# 1, 2 threads, was 1.10 times as fast in OpenVINO with this one and 0.99 with 0; V2 1.02 and 0.87.
# With a batch of 16, where all is larger, 1.18 and 1.15.
LEAST = 120_000


def split(source: Path, target: Path, shapes: Sequence[Sequence[int]]) -> None:
    """Write an ONNX file anew, with the halves of Ghost layers apart where it is exact and pays.

    Args:
        source: With opset 13 or newer.
        target: May be the same file.
        shapes: Of its inputs, for which it shall pay; it works with others, too.

    Raises:
        ValueError: There is no such Ghost layer.
    """
    model = onnx.load(source)
    if not keep_apart(model, shapes, LEAST):
        raise ValueError(
            'no halves of Ghost layers stay apart here: convs must read them, and both together '
            f'hold {LEAST:,} numbers for the example; leave split (--split) out'
        )
    onnx.save(model, target)


def keep_apart(model: onnx.ModelProto, shapes: Sequence[Sequence[int]], least: int = 0) -> int:
    """Let the halves of two-part concatenations stay apart, in place.

    Args:
        model: With opset 13 or newer.
        shapes: Of its inputs.
        least: Numbers in a joined value; where there are fewer, halves are joined.

    Returns:
        How many concatenations went.
    """
    if any(a.HasField('g') or a.graphs for node in model.graph.node for a in node.attribute):
        return 0  # branches and loops read values by name, too
    graph = Graph.of(model, shapes)
    writer = _Writer(graph, layouts(graph, least))
    nodes = list(writer.nodes())
    used = {name for node in nodes for name in node.input} | set(graph.outputs)
    kept = [numpy_helper.from_array(v, n) for n, v in graph.constants.items() if n in used]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    return writer.parted - len(writer.joined)


@dataclass
class _Writer:
    """Writes the nodes anew, those of halves once for each.

    Attributes:
        graph: Whose; new constants go into it.
        layouts: Of :func:`layouts`.
        halves: Names of what was written of a value.
        joined: Values that something reads as a whole.
        parted: Concatenations that were left out.
    """

    graph: Graph
    layouts: dict[str, Sizes]
    halves: dict[str, list[str]] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    parted: int = 0

    def nodes(self) -> Iterator[NodeProto]:
        """All nodes."""
        for node in self.graph.nodes:
            yield from self._written(node)
        yield from self._join(self.graph.outputs)

    def _written(self, node: NodeProto) -> Iterator[NodeProto]:
        source, out = node.input[0] if node.input else '', node.output[0]
        if out in self.layouts and node.op_type == 'Concat':
            yield from self._join(node.input)
            self.halves[out] = list(node.input)
            self.parted += 1
        elif self.graph.is_dense(node) and {source, out} & self.layouts.keys():
            yield from self._conv(node)
        elif out in self.layouts:
            yield from self._each(node)
        elif source in self.layouts and self.graph.pools(node):
            yield from self._pool(node)
        elif source in self.layouts and node.op_type == 'Shape' and not node.attribute:
            yield from self._shape(node)
        else:
            yield from self._join(node.input)
            yield node

    def _join(self, names: Iterable[str]) -> Iterator[NodeProto]:
        """Those that are read as a whole are joined, once."""
        for name in names:
            if name in self.layouts and name not in self.joined:
                self.joined.add(name)
                yield helper.make_node('Concat', self.halves[name], [name], name, axis=1)

    def _conv(self, node: NodeProto) -> Iterator[NodeProto]:
        """For each half of the output the sum of one conv for each half of the input."""
        weight, *bias = (self.graph.constants[name] for name in node.input[1:])
        read = self._parts(node.input[0], weight.shape[1])
        for name, rows in self._parts(node.output[0], len(weight)):
            terms = [name] if len(read) == 1 else [f'{name}/term{i}' for i in range(len(read))]
            for term, (source, columns) in zip(terms, read, strict=True):
                own = [weight[rows, columns], *(b[rows] for b in bias if term == terms[0])]
                yield _copy(node, [source, *(self._constant(v, term) for v in own)], term)
            if len(read) > 1:
                yield helper.make_node('Add', terms, [name], name)

    def _each(self, node: NodeProto) -> Iterator[NodeProto]:
        """The same for each half."""
        maps = sum(self.layouts[node.output[0]])
        for index, (name, own) in enumerate(self._parts(node.output[0], maps)):
            copy = _copy(node, [self._half(node, v, index, own) for v in node.input], name)
            if node.op_type == 'Conv':
                _group(copy).i = own.stop - own.start
            elif node.op_type == 'Resize' and any(node.input[SIZES_OF_RESIZE:]):
                sizes, copy.input[SIZES_OF_RESIZE] = node.input[SIZES_OF_RESIZE], f'{name}/sizes'
                yield from self._sizes(sizes, own.stop - own.start, f'{name}/sizes')
            yield copy

    def _half(self, node: NodeProto, value: str, index: int, own: slice) -> str:
        """A half of an input, if it has halves; what has one value for all is for both."""
        if value in self.layouts:
            return self.halves[value][index]
        held = self.graph.constants.get(value, np.array(0))
        axis = 0 if node.op_type == 'Conv' else held.ndim - 3
        if axis < 0 or not held.ndim or held.shape[axis] != sum(self.layouts[node.output[0]]):
            return value
        return self._constant(held[(slice(None),) * axis + (own,)], f'{value}/{own.start}')

    def _shape(self, node: NodeProto) -> Iterator[NodeProto]:
        """The shape of the whole, from one half."""
        out = node.output[0]
        yield _copy(node, self.halves[node.input[0]][:1], f'{out}/half')
        yield from self._sizes(f'{out}/half', sum(self.layouts[node.input[0]]), out)

    def _sizes(self, sizes: str, maps: int, out: str) -> Iterator[NodeProto]:
        """Four sizes with another number of maps."""
        ends = [self._constant(np.array([end]), out) for end in (0, 1, 2, 4)]
        parts = [f'{out}/batch', self._constant(np.array([maps]), out), f'{out}/sides']
        yield helper.make_node('Slice', [sizes, *ends[:2]], parts[:1], parts[0])
        yield helper.make_node('Slice', [sizes, *ends[2:]], parts[2:], parts[2])
        yield helper.make_node('Concat', parts, [out], out, axis=0)

    def _pool(self, node: NodeProto) -> Iterator[NodeProto]:
        """Each half alone, then both together."""
        out = node.output[0]
        pooled = [f'{half}/{out}' for half in self.halves[node.input[0]]]
        for half, name in zip(self.halves[node.input[0]], pooled, strict=True):
            yield _copy(node, [half, *node.input[1:]], name)
        yield helper.make_node('Concat', pooled, [out], out, axis=1)

    def _parts(self, value: str, maps: int) -> list[tuple[str, slice]]:
        """Names and places of the halves of a value, or of the value itself."""
        if value not in self.layouts:
            return [(value, slice(0, maps))]
        own = self.layouts[value]
        names = self.halves.setdefault(value, [f'{value}/half{i}' for i in range(len(own))])
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


def _group(conv: NodeProto) -> onnx.AttributeProto:
    return next(a for a in conv.attribute if a.name == 'group')
