"""Analysis of small ONNX graphs."""

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')

from ghost_plugin.deploy.concat_elimination.onnx_analysis import Graph, split_values


def graph_of(reader):
    """Build x -> two 1x1 convs -> concatenation -> ReLU -> a reader."""
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), 'weight')
    last = onnx.numpy_helper.from_array(np.ones((2, 8, 1, 1), np.float32), 'last')
    nodes = [
        helper.make_node('Conv', ['x', 'weight'], ['a']),
        helper.make_node('Conv', ['x', 'weight'], ['b']),
        helper.make_node('Concat', ['a', 'b'], ['pair'], axis=1),
        helper.make_node('Relu', ['pair'], ['act']),
        reader,
    ]
    x = helper.make_tensor_value_info('x', 1, [1, 3, 4, 4])
    y = helper.make_tensor_value_info('y', 1, None)
    net = helper.make_graph(nodes, 'net', [x], [y], [weight, last])
    return Graph.from_model(helper.make_model(net), [(1, 3, 4, 4)])


def test_values_between_a_concat_and_a_conv_are_split():
    graph = graph_of(onnx.helper.make_node('Conv', ['act', 'last'], ['y']))
    assert graph.channels('pair') == 8
    assert graph.max_elements(['a', 'pair']) == 128
    assert split_values(graph, 128) == {'pair': (4, 4), 'act': (4, 4)}
    assert split_values(graph, 129) == {}


def test_other_readers_keep_the_concat():
    assert split_values(graph_of(onnx.helper.make_node('Softmax', ['act'], ['y'])), 0) == {}
