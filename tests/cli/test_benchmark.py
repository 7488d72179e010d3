"""The command benchmark."""

import json

import pytest

pytest.importorskip('timm')

from ghost_plugin.cli import benchmark, benchmark_grid


def test_it_prints_ratios_and_writes_results(ok, refused, tmp_path):
    results = tmp_path / 'results.json'
    out = ok('benchmark', 'ghostnet_plugin_050', 'ghostnet_050', '--batch', 2, '--size', 32,
             '--rounds', 2, '--warmup', 1, '--json', results)  # fmt: skip
    assert out.count('| best of both |') == 3
    assert len(json.loads(results.read_text())) == 12
    assert 'two models, family, forms, bf16, convert, grid' in refused('benchmark', 'ghostnet_100')


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['nonsense', 'ghostnet_100'], 'timm has no nonsense'),
        (['bf16', 'extra'], 'timm has no bf16, extra'),
        (['--threads', 0], 'not a whole number above 0'),
        (['--rounds', 0], 'not a whole number above 0'),
        (['--batch', 0], 'not a whole number above 0'),
        (['--device', 'foo'], "no device 'foo' here"),
        (['--json', __file__ + '/x.json'], 'is no folder'),
        (['grid', 'timm:resnet18', '--plot', 'x.abc'], '--plot must end in one of'),
        (['grid', 'timm:resnet18', '--top1', 'no.json', '--plot', 'x.png'], 'no.json'),
    ],
)
def test_it_refuses_before_it_measures(refused, args, said, monkeypatch):
    for module, name in ((benchmark, 'measure'), (benchmark_grid, 'measure_grid')):
        monkeypatch.setattr(module, name, lambda *args: pytest.fail('it measures'))
    assert said in refused('benchmark', *args)


@pytest.mark.parametrize('job, dtypes', [('forms', {'float32'}), ('bf16', {'float32', 'bfloat16'})])
def test_our_models_are_compared_with_timms_in_a_grid(ok, job, dtypes, monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, 'run_grid', lambda *args: seen.append(args) or [])
    ok('benchmark', job, '--device', 'cpu', '--batch', 4)
    models, backends, batches, *_ = seen[0]
    assert models[:2] == ['timm:ghostnet_100', 'timm:ghostnet_plugin'] and len(models) == 6
    assert backends[0] == 'eager' and batches == [4]
    assert {benchmark.TIMED[name].dtype for name in backends} <= {'float32', 'bfloat16'}


def test_the_costs_of_a_conversion_are_measured():
    row = benchmark.measure_step('plan without data', 'test_resnet', 32, 1)
    assert row['step'] == 'plan without data' and row['seconds'] > 0 and row['megabytes'] >= 0
