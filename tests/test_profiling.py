import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin import profiling
from ghost_plugin.profiling import time_together


def test_count_leaves_the_model_as_it_was():
    net = gp.GhostNet(0.5)
    net.blocks[0].eval()
    before = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    gp.count(net, torch.randn(1, 3, 32, 32))
    assert [m.training for m in net.modules()] == before
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)


def test_rows_sum_to_the_total_and_name_the_layers():
    cost = gp.count(gp.GhostNet(0.5), torch.randn(1, 3, 64, 64))
    assert sum(row.macs for row in cost.rows) == cost.macs
    assert cost.rows[0].name == 'conv_stem'
    assert cost.as_dict()['params'] == cost.params


def test_only_convs_and_linears_count():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5)
    )
    cost = gp.count(net, torch.randn(1, 2, 5, 5))
    assert [row.macs for row in cost.rows] == [4 * 9 * 9, 36 * 5]
    with torch.inference_mode():
        assert gp.count(net, torch.randn(1, 2, 5, 5)) == cost


def test_count_agrees_with_fvcore():
    fvcore = pytest.importorskip('fvcore.nn')
    net, x = gp.GhostNet(0.5).eval(), torch.randn(1, 3, 64, 64)
    flops = fvcore.FlopCountAnalysis(net, x).unsupported_ops_warnings(False).by_operator()
    assert gp.count(net, x).macs == flops['conv']


def test_timing_gives_every_task_its_rounds():
    calls = []
    timings = time_together({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, 4, 1)
    assert [t.name for t in timings] == ['a', 'b']
    assert calls.count('a') == calls.count('b') == 5
    assert all(t.low <= t.median <= t.high for t in timings)
    with pytest.raises(ValueError, match='rounds must be 1 or more, got 0'):
        time_together({'a': list}, rounds=0)


def test_calls_of_different_runtimes_are_timed_after_a_rest_and_untimed_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(profiling.time, 'sleep', lambda seconds: calls.append('rest'))
    tasks = {'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}
    time_together(tasks, rounds=1, warmup=0, rest=True)
    assert calls == ['rest', *'aaaa', 'rest', *'bbbb']


class Queries(nn.Module):
    """Asks by parts of an embedding, as transformers that detect do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(5, 8), nn.Linear(4, 3)

    def forward(self, x):
        position, query = torch.split(self.embedding.weight, 4, dim=1)
        return self.linear(query) + self.linear(position) + x


def test_parts_of_parameters_are_counted_and_stay_trainable():
    model = Queries()
    model.linear.bias.requires_grad_(False)
    assert gp.count(model, torch.zeros(1)).macs == 2 * 5 * 4 * 3
    assert [p.requires_grad for p in model.parameters()] == [True, True, False]
