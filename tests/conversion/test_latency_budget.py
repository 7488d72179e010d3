"""Budgets of time, with a clock that counts: real ones belong into the benchmark."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import latency_budget, layer_latency
from ghost_plugin.deploy.backends import TIMED
from ghost_plugin.profiling import Timing
from ghost_plugin.utils import optional

X = torch.randn(1, 3, 16, 16)


def net():
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU()) for i, o in
          ((3, 16), (16, 32), (32, 32), (32, 32), (32, 8)))
    ).eval()  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Milliseconds are multiply-adds, but for a price of each Ghost conv."""
    price = {'ghost': 0.0}

    def timed(module):
        ghosts = sum(isinstance(m, gp.GhostConv2d) for m in module.modules())
        return gp.count(module, X).macs * 1e-3 + price['ghost'] * ghosts

    def times(model, example_input, layers, prepare):
        found = {}
        for layer in layers:
            settings = {r: {**layer.settings, 'ratio': float(r)} for r in layer.scores}
            macs = {r: layer.shape.ghost(own)[1] for r, own in settings.items()}
            ghosts = {r: 1e-3 * number + price['ghost'] for r, number in macs.items()}
            found[layer.name] = {'1': 1e-3 * layer.shape.dense()[1], **ghosts}
        return found

    monkeypatch.setattr(latency_budget, 'time_layers', times)
    monkeypatch.setattr(
        latency_budget,
        'measure_latencies',
        lambda nets, x, prepare: {name: timed(net) for name, net in nets.items()},
    )
    return price


@pytest.mark.parametrize('share', [0.9, 0.7])
def test_the_measured_plan_meets_the_budget(clock, share):
    plan = gp.plan(net(), X, latency=share)
    assert plan.latency['converted'] <= share * plan.latency['original']
    assert any(row.converts for row in plan.layers)


def test_milliseconds_are_a_budget_too(clock):
    whole = gp.count(net(), X).macs * 1e-3
    plan = gp.plan(net(), X, latency=f'{0.8 * whole}ms')
    assert plan.latency['converted'] <= 0.8 * plan.latency['original']


def test_convs_whose_ghost_is_slower_stay(clock):
    clock['ghost'] = 1e9
    with pytest.raises(ValueError, match=r'the fastest plan measured takes 1\.000'):
        gp.plan(net(), X, latency=0.9)


def test_a_budget_out_of_reach_says_what_was_reached(clock):
    with pytest.raises(ValueError, match=r'the fastest plan measured takes 0\.'):
        gp.plan(net(), X, latency=0.05)


@pytest.mark.parametrize('other', ['macs', 'params'])
@pytest.mark.parametrize('price', [0.0, 100.0])
def test_another_budget_is_met_beside_it(clock, other, price):
    clock['ghost'] = price
    plan = gp.plan(net(), X, latency=0.9, **{other: 0.65})
    assert plan.totals[f'{other}_after'] <= 0.65 * plan.totals[f'{other}_before']
    assert plan.latency['converted'] <= 0.9 * plan.latency['original']


@pytest.mark.parametrize('met', [1.0, '90000ms', 1])
def test_a_budget_that_is_met_already_changes_nothing(clock, met):
    plan = gp.plan(net(), X, latency=met)
    assert not any(row.converts for row in plan.layers)
    assert plan.latency['converted'] == plan.latency['original'] > 0


def test_other_targets_forget_what_was_measured(clock):
    plan = gp.plan(net(), X, latency=0.9)
    assert not plan.rebudget(macs=0.7).latency
    assert plan.latency


@pytest.mark.parametrize('wrong', ['soon', 0, '-3ms', 1.5, float('nan'), 'infms'])
def test_other_budgets_are_named(clock, wrong):
    with pytest.raises(ValueError, match='latency must be a share'):
        gp.plan(net(), X, latency=wrong)


def ranked(tasks, *_, **__):
    """A clock by which the second takes half of the first's time, the third a third."""
    return [Timing(name, 1.0 / n, 0, 0, 1) for n, name in enumerate(tasks, 1)]


@pytest.mark.parametrize('backend', ['fused', 'onnxruntime'])
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
    # The orders of three of the four go, so there are two kinds.
    assert len(singles) == 2 * (1 + ratios)
    stay = [m.order is not None for m in singles if isinstance(m, gp.GhostConv2d)]
    assert any(stay[:ratios])  # where an order picks maps it stays
    assert not all(stay[:ratios])
    assert all(stay[ratios:])
    whole = made[-1]
    orders = [c.order for c in whole.convs if isinstance(c, gp.GhostConv2d)]
    assert orders
    assert all((order != torch.arange(32)).any() for order in orders)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"latency_backend must be one of .*got 'tpu'"):
        gp.plan(net(), X, latency=0.9, latency_backend='tpu')


def test_a_backend_without_a_budget_of_time_is_refused():
    with pytest.raises(ValueError, match='no latency was given'):
        gp.plan(net(), X, macs=0.8, latency_backend='fused')
