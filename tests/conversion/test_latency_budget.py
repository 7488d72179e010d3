"""Budgets of time, with a clock that counts: real ones belong into the benchmark."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import latency_budget
from ghost_plugin.conversion.variants import Variant

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


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

    def times(model, example_input, layers, prepare, report):
        found = {}
        for layer in layers:
            settings = {r: Variant.from_key(r).settings(layer.settings) for r in layer.scores}
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


class Residual(nn.Module):
    """Three convs whose outputs shortcuts add."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for conv in self.convs:
            x = x + conv(x.relu())
        return self.head(x.relu())


@pytest.mark.parametrize('share', [0.85, 0.7, 0.55])
def test_convs_of_a_shortcut_get_one_setting_and_keep_no_permutation(clock, share):
    model = Residual().eval()
    plan = gp.plan(model, X, latency=share)
    inner = [layer for layer in plan.layers if layer.converts]
    assert inner
    assert len({(layer.ratio, layer.dw_size, layer.group_size) for layer in inner}) == 1
    fused = gp.fuse(plan.apply(model).eval(), X)
    assert all(getattr(module, 'order', None) is None for module in fused.modules())


def test_kernel_and_group_sizes_are_chosen_too(clock):
    layers = gp.plan(net(), X, latency=0.8).layers
    keys = {key for layer in layers for key in layer.scores}
    assert {'2 dw_size=3 group_size=1', '1.5 dw_size=1 group_size=all'} <= keys
    given = gp.plan(net(), X, latency=0.8, dw_size=5).layers
    assert {layer.dw_size for layer in given if layer.converts} == {5}


@pytest.mark.parametrize('second, met', [(0.79, True), (0.84, True), (0.87, False), (0.95, False)])
def test_a_promise_holds_in_a_second_measurement(second, met, monkeypatch):
    shares = iter([0.8, second])

    def measure(nets, x, prepare):
        return {'original': 10.0, 'converted': 10 * next(shares)}

    monkeypatch.setattr(latency_budget, 'measure_latencies', measure)
    times, share = latency_budget._measure_twice({}, X, 0.9, None)
    assert times['converted'] == pytest.approx(10 * max(0.8, second))
    assert (share <= 0.9) == met


def test_what_misses_the_budget_is_not_measured_again(monkeypatch):
    monkeypatch.setattr(
        latency_budget, 'measure_latencies', lambda *_: {'original': 10.0, 'converted': 9.5}
    )
    assert latency_budget._measure_twice({}, X, 0.9, None)[1] == pytest.approx(0.95)
