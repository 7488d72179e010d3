import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.graph import symbolic_trace
from ghost_plugin.graph.symbolic_trace import conv_norm_neighbours, norms_behind, trace_parts


def block():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


class Branching(nn.Module):
    """Its control flow depends on values."""

    def __init__(self):
        super().__init__()
        self.left, self.right = block(), block()

    def forward(self, x):
        return self.left(x) if x.sum() > 0 else self.right(x)


class ReadsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) * self.conv.weight.mean()


def test_a_model_is_traced_as_a_whole_and_not_changed():
    net = block()
    (part,) = trace_parts(net)
    assert part.prefix == ''
    assert [part.name(n) for n in part.graph.nodes if n.op == 'call_module'] == ['0', '1', '2']
    assert part.modules['0'] is net[0]
    assert norms_behind([part]) == [('0', '1')]
    assert conv_norm_neighbours([part]) == {net[0]: net[1], net[1]: net[0]}


def test_children_are_traced_where_control_flow_depends_on_values():
    parts = trace_parts(Branching())
    assert [part.prefix for part in parts] == ['left.', 'right.']
    assert norms_behind(parts) == [('left.0', 'left.1'), ('right.0', 'right.1')]


def test_a_module_whose_weight_the_graph_reads_has_no_neighbour():
    net = ReadsWeight().eval()
    parts = trace_parts(net)
    assert norms_behind(parts) == []
    assert conv_norm_neighbours(parts)[net.conv] is None


@pytest.mark.parametrize('net', [block, lambda: gp.GhostNetV3(0.35, out_indices=(1,)).eval()])
def test_fuse_traces_a_model_once(net, monkeypatch):
    calls = []
    graph = symbolic_trace._graph
    monkeypatch.setattr(symbolic_trace, '_graph', lambda model: calls.append(model) or graph(model))
    fused = gp.fuse(net(), torch.randn(1, 3, 32, 32))
    assert len(calls) == 1
    assert not fused.folding.left
