"""Timing of layers, with a clock that counts: real ones belong into the benchmark."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import layer_latency
from ghost_plugin.deploy.backends import TIMED
from ghost_plugin.profiling import Timing
from ghost_plugin.utils import optional

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def net():
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU()) for i, o in
          ((3, 16), (16, 32), (32, 32), (32, 8)))
    ).eval()  # fmt: skip


def ranked(tasks, *_, **__):
    """A clock by which the second takes half of the first's time, the third a third."""
    return [Timing(name, 1.0 / n, 1.0 / n, 0, 1) for n, name in enumerate(tasks, 1)]


@pytest.mark.parametrize('backend', ['fused', 'onnxruntime', 'ncnn'])
def test_what_is_timed_can_be_a_backend(backend, monkeypatch):
    if not optional.usable(*TIMED[backend].needs):
        pytest.skip(f'needs {TIMED[backend].needs}')
    timed = []

    def clock(tasks, *_, **__):
        timed.append([task() for task in tasks.values()])
        return ranked(tasks)

    monkeypatch.setattr(layer_latency, 'time_together', clock)
    plan = gp.plan(net(), X, latency=0.9, latency_backend=backend)
    assert plan.latency == {'original': 1.0, 'converted': 0.5}
    assert all(isinstance(maps, list) for call in timed for maps in call)  # what runners give


class Shortcut(nn.Module):
    """Two convs of one kind whose maps nobody adds, two whose maps a shortcut adds."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for inner, outer in (self.convs[:2], self.convs[2:]):
            x = x + outer(inner(x).relu())
        return self.head(x)


def test_each_kind_of_conv_is_timed_once_with_the_order_that_stays(monkeypatch):
    made = []

    def spy(module, example_input):
        made.append(module)
        return lambda: module(example_input)

    monkeypatch.setattr(layer_latency, 'time_together', ranked)
    plan = gp.plan(Shortcut().eval(), X, latency=0.9, latency_backend=spy)
    ratios = len(plan.layers[1].scores)
    singles = [m for m in made if not isinstance(m, Shortcut)]
    assert len(singles) == 1 + ratios  # the orders of all four go, so there is one kind
    ghosts = [single[0] for single in singles if isinstance(single[0], gp.GhostConv2d)]
    stay = [ghost.order is not None for ghost in ghosts]
    assert len(stay) == ratios and not any(stay)
    whole = made[-1]
    orders = [c.order for c in whole.convs if isinstance(c, gp.GhostConv2d)]
    assert orders
    assert all((order != torch.arange(32)).any() for order in orders)


def test_an_eager_call_gets_the_same_values_each_time():
    x = torch.ones(2)
    call = layer_latency.prepare_eager(nn.ReLU(inplace=True), x.neg_())
    call()
    call()
    assert (x == -1).all()


def test_milliseconds_of_layers_count_all_their_calls(monkeypatch):
    monkeypatch.setattr(layer_latency, 'time_together', ranked)
    plan = gp.plan(net(), X, macs=0.9)
    scored = [layer for layer in plan.layers if layer.scores]
    found = layer_latency.time_layers(net(), X, scored, layer_latency.prepare_eager)
    assert found.keys() == {layer.name for layer in scored}
    for layer in scored:
        assert list(found[layer.name]) == ['1', *layer.scores]
        assert found[layer.name]['1'] == 1.0
