import json

import pytest

pytest.importorskip('timm')

import ghost_plugin as gp
from ghost_plugin.cli import benchmark_grid
from ghost_plugin.deploy.backends import TIMED

MODEL = 'timm:ghostnet_plugin_050'


def test_the_grid_has_a_figure_for_each_case_and_says_what_wins(monkeypatch, tmp_path):
    row = TIMED['eager']
    absent = type(row)('absent', 'float32', row.build, ('no_such_package',))
    monkeypatch.setitem(TIMED, 'absent', absent)
    names = ['timm:resnet18', 'timm:resnet18@2']
    backends = ['eager', 'channels-last', 'absent']
    found = benchmark_grid.measure_grid(names, backends, (1, 2), (1,), (32, 32), rounds=2, warmup=0)
    assert [(f.model, f.backend, f.batch) for f in found] == [
        (name, backend, batch) for batch in (1, 2) for name in names for backend in backends
    ]
    for figure in found:
        if figure.backend == 'absent':
            assert figure.reason == 'no_such_package is not installed'
        else:
            assert 0 < figure.low <= figure.median <= figure.high
            assert figure.difference < 1e-4
    said = benchmark_grid.verdicts(found)
    assert len(said) == 4
    for line in said:
        assert ('the conversion' in line) == ('@2' in line.split(',')[0])
    benchmark_grid.draw(found, tmp_path / 'bars.png', None)
    benchmark_grid.draw(found, tmp_path / 'points.png', {'timm:resnet18': 70.0})
    for file in tmp_path.iterdir():
        assert file.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('median', 'said'),
    [(5.0, 'gains: 2.00 times'), (20.0, 'does NOT gain, the plain network wins')],
)
def test_a_conversion_that_loses_is_said_to_lose(median, said):
    plain = benchmark_grid.Measurement('timm:a', 'fused', 1, 2, 10.0, 9.0, 11.0)
    slow = benchmark_grid.Measurement('timm:a', 'eager', 1, 2, 99.0, 9.0, 111.0)
    other = benchmark_grid.Measurement('timm:a@2', 'eager', 1, 2, median, 1.0, 30.0)
    lines = benchmark_grid.verdicts([slow, plain, other])
    assert lines[0] == 'timm:a, batch 1, 2 threads: fastest by fused, 10.00 ms'
    assert said in lines[1]


def test_models_are_converted_by_a_ratio_or_a_plan(tmp_path):
    source = benchmark_grid.load_variant(MODEL, (32, 32))
    plan = gp.plan(source.model, source.example(), ratio=4)
    plan.save(tmp_path / 'plan.json')
    by_plan = benchmark_grid.load_variant(f'{MODEL}@{tmp_path / "plan.json"}', (32, 32)).model
    by_ratio = benchmark_grid.load_variant(f'{MODEL}@4', (32, 32)).model
    costs = [gp.count(net, source.example()).macs for net in (by_plan, by_ratio, source.model)]
    assert costs[0] == costs[1] == plan.totals['macs_after'] < costs[2]
    with pytest.raises(ValueError, match=r"a plan \(.json\) or a ratio follows @, got 'x'"):
        benchmark_grid.load_variant(f'{MODEL}@x')


@pytest.mark.parametrize('backend', ['warp', 'openvino-int8'])
def test_unknown_backends_are_named(backend):
    with pytest.raises(ValueError, match=f"got '{backend}'"):
        benchmark_grid.measure_grid([MODEL], [backend])


def test_the_command_prints_writes_and_draws(ok, refused, tmp_path):
    options = ['--backends', 'eager', '--batch', '1', '--size', '32', '--rounds', '2']
    files = ['--json', tmp_path / 'a.json', '--plot', tmp_path / 'a.png']
    assert f'{MODEL}, batch 1' in ok('benchmark', 'grid', MODEL, *options, *files)
    assert json.loads((tmp_path / 'a.json').read_text())[0]['model'] == MODEL
    assert (tmp_path / 'a.png').exists()
    assert 'grid needs models' in refused('benchmark', 'grid')
