"""The runtimes' study: plans by a budget of time, kept, and networks with one permutation."""

import pytest

pytest.importorskip('timm')

import torch

import ghost_plugin as gp


@pytest.fixture
def study(monkeypatch):
    import runtimes

    monkeypatch.setattr(runtimes, 'NETWORKS', {'test_resnet': 1.2})
    monkeypatch.setattr(runtimes, 'RUNTIMES', ('eager',))
    return runtimes


@pytest.fixture
def tried(study, monkeypatch):
    """Budgets of time that were tried; those below 0.9 are refused."""
    seen, plan = [], gp.plan

    def planned(model, example, latency=None, latency_backend=None, **options):
        if latency is not None:
            seen.append(latency)
            if latency < 0.9:
                raise ValueError('too fast')
        return plan(model, example, **(options if latency is None else {'ratio': 2}))

    monkeypatch.setattr(gp, 'plan', planned)
    return seen


def test_budgets_of_time_are_tried_until_one_is_met_and_its_plan_is_kept(study, tried, tmp_path):
    found = study.plans('test_resnet', tmp_path)
    assert list(found) == ['ratio 2', 'macs', 'latency in eager']
    assert tried == [study.RESERVE / 1.2, 0.9]
    assert all(gp.ConversionPlan.load(path).layers for path in found.values())
    assert study.plans('test_resnet', tmp_path) == found
    assert len(tried) == 2


def test_each_way_is_timed_and_one_permutation_beside_it(study, tried, tmp_path):
    rows = study.converted(tmp_path, 1, 1, ['test_resnet'])
    ways = [row['way'] for row in rows]
    assert ways == ['original', 'ratio 2', 'ratio 2, one permutation', 'macs', 'latency in eager']
    assert all(row['median'] > 0 and row['speedup'] > 0 for row in rows)
    assert rows[0]['speedup'] == 1


def test_shared_permutations_are_gone_in_a_fused_network(study, tried, tmp_path):
    path = study.plans('test_resnet', tmp_path)['ratio 2']
    left = []
    for name in (f'timm:test_resnet@{path}', f'timm:test_resnet@{path} shared'):
        fused = gp.fuse(study.load(name).model, torch.randn(1, 3, 64, 64))
        left.append(sum(getattr(module, 'order', None) is not None for module in fused.modules()))
    assert left[1] < left[0]
