"""The command benchmark."""

import json

import pytest

pytest.importorskip('timm')

import ghost_plugin as gp
from ghost_plugin.cli import benchmark
from ghost_plugin.cli.benchmark import Measurement, Settings
from ghost_plugin.deploy.backends import TIMED

MODEL = 'timm:ghostnet_plugin_050'


def test_each_case_has_a_measurement_and_a_verdict(monkeypatch, tmp_path):
    row = TIMED['eager']
    absent = type(row)('absent', 'float32', row.build, ('no_such_package',))
    monkeypatch.setitem(TIMED, 'absent', absent)
    names = ['timm:test_resnet', 'timm:test_resnet@2']
    backends = ['eager', 'channels-last', 'absent', 'training']
    found = benchmark.measure(names, Settings(backends, (1, 2), (1,), (64, 64), 2, 0))
    assert [(f.model, f.backend, f.batch) for f in found] == [
        (name, backend, batch) for batch in (1, 2) for name in names for backend in backends
    ]
    for one in found:
        if one.backend == 'absent':
            assert one.reason == 'no_such_package is not installed'
        else:
            assert 0 < one.low <= one.median <= one.high
            assert (one.difference is None) == (one.backend == 'training')
            assert (one.difference or 0) < 1e-4
    said = benchmark.verdicts(found)
    assert len(said) == 4
    for line in said:
        assert ('the conversion' in line) == ('@2' in line.split(',')[0])
    table = benchmark.results(found).splitlines()
    assert len(table) == 2 + len(found) and 'no_such_package is not installed' in table[4]
    benchmark.draw(found, tmp_path / 'bars.png', None)
    benchmark.draw(found, tmp_path / 'points.png', {'timm:test_resnet': 70.0})
    for file in tmp_path.iterdir():
        assert file.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('median', 'said'),
    [(5.0, 'gains: 2.00 times'), (20.0, 'does NOT gain, the plain network wins')],
)
def test_a_conversion_that_loses_is_said_to_lose(median, said):
    plain = Measurement('timm:a', 'fused', 1, 2, 10.0, 9.0, 11.0)
    slow = Measurement('timm:a', 'eager', 1, 2, 99.0, 9.0, 111.0)
    other = Measurement('timm:a@2', 'eager', 1, 2, median, 1.0, 30.0)
    lines = benchmark.verdicts([slow, plain, other])
    assert lines[0] == 'timm:a, batch 1, 2 threads: fastest by fused, 10.00 ms'
    assert said in lines[1]
    ratio = benchmark.results([slow, plain, other]).splitlines()[-1].split(' | ')[5]
    assert ratio == f'{99 / median:.2f}'


def test_models_are_converted_by_a_ratio_or_a_plan(tmp_path):
    source = benchmark.load_variant('timm:test_resnet', (32, 32))
    plan = gp.plan(source.model, source.example(), ratio=4)
    plan.save(tmp_path / 'plan.json')
    by_plan = benchmark.load_variant(f'timm:test_resnet@{tmp_path / "plan.json"}', (32, 32)).model
    by_ratio = benchmark.load_variant('timm:test_resnet@4', (32, 32)).model
    costs = [gp.count(net, source.example()).macs for net in (by_plan, by_ratio, source.model)]
    assert costs[0] == costs[1] == plan.totals['macs_after'] < costs[2]
    with pytest.raises(ValueError, match=r"a plan \(.json\) or a ratio follows @, got 'x'"):
        benchmark.load_variant(f'{MODEL}@x')


@pytest.mark.parametrize('backend', ['warp', 'openvino-int8'])
def test_unknown_backends_are_named(backend):
    with pytest.raises(ValueError, match=f"'{backend}'"):
        benchmark.measure([MODEL], Settings([backend]))


def test_the_command_prints_writes_and_draws(ok, tmp_path):
    options = ['--backends', 'eager', '--batch', '1', '--size', '32', '--rounds', '2']
    files = ['--json', tmp_path / 'a.json', '--plot', tmp_path / 'a.png']
    assert f'{MODEL}, batch 1' in ok('benchmark', MODEL, *options, *files)
    assert json.loads((tmp_path / 'a.json').read_text())[0]['model'] == MODEL
    assert (tmp_path / 'a.png').exists()


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['nonsense', 'ghostnet_100'], "timm has no model 'nonsense'"),
        (['bf16', 'extra'], "timm has no model 'bf16'"),
        (['--threads', 0], 'not a whole number above 0'),
        (['--rounds', 0], 'not a whole number above 0'),
        (['--batch', 0], 'not a whole number above 0'),
        (['--device', 'foo'], "no device 'foo' here"),
        (['--json', __file__ + '/x.json'], 'is no folder'),
        (['timm:resnet18', '--plot', 'x.abc'], '--plot must end in one of'),
        (['timm:resnet18', '--top1', 'no.json', '--plot', 'x.png'], 'no.json'),
        (['grid'], 'grid needs models'),
    ],
)
def test_it_refuses_before_it_measures(cli, args, said, monkeypatch):
    monkeypatch.setattr(benchmark, 'time_together', lambda *args: pytest.fail('it measures'))
    status, _, err = cli('benchmark', *args)
    assert (status, err.count('\n')) == (2, 1) and said in err


@pytest.mark.parametrize(
    ('args', 'backends'),
    [
        (['family'], {'eager', 'training', 'training-channels-last'}),
        (['forms'], {'eager', 'compiled'}),
        (['bf16'], {'eager', 'compiled-bf16'}),
        (['family', '--modes', 'training'], {'training', 'training-channels-last'}),
    ],
)
def test_our_models_are_compared_with_timms(ok, args, backends, monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, 'measure', lambda *args: seen.append(args) or [])
    monkeypatch.setattr(benchmark, 'results', lambda found: '')
    ok('benchmark', *args, '--device', 'cpu', '--batch', 4)
    assert [models for models, _ in seen] == [
        [f'timm:{theirs}', f'timm:{ours}'] for theirs, ours in benchmark.PAIRS
    ]
    settings = seen[0][1]
    assert backends <= set(settings.backends) and settings.batches == [4]


def test_the_costs_of_a_conversion_are_measured():
    row = benchmark.measure_step('plan without data', 'test_resnet', 32, 1)
    assert row['step'] == 'plan without data' and row['seconds'] > 0 and row['megabytes'] >= 0
