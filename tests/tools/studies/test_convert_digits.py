"""The conversion on digits: table, budget, runtime."""

import dataclasses
import functools
import importlib
import json

import pytest

pytest.importorskip('timm')
pytest.importorskip('sklearn')

import torch

import ghost_plugin as gp
from ghost_plugin.cli import model_loading
from ghost_plugin.conversion.layer_latency import LATENCY_BACKENDS
from ghost_plugin.profiling import Timing


@pytest.fixture
def digits(tmp_path, in_process):
    """The folder of make_digits.py with every tenth image."""
    status, _, err = in_process('make_digits', tmp_path / 'digits', '--train', 1, '--val', 1)
    assert status == 0, err
    for number, path in enumerate(sorted((tmp_path / 'digits').rglob('*.png'))):
        if number % 10:
            path.unlink()
    return tmp_path / 'digits'


@pytest.mark.parametrize('met', [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_digits_are_learned_converted_and_shown(met, digits, tmp_path, in_process, monkeypatch):
    small = functools.partial(
        model_loading.load, 'timm:test_resnet'
    )  # fitting ResNet-18 takes long
    monkeypatch.setattr(model_loading, 'load', lambda name, **options: small(**options))
    plan = gp.plan

    def pretended(*args, latency=None, latency_backend='eager', **options):
        if latency is None:
            return plan(*args, **options)
        assert latency == 0.7 and latency_backend in LATENCY_BACKENDS
        if not met:
            raise ValueError('the fastest plan measured takes 0.900')
        made = plan(*args, macs=0.75, **options)
        return dataclasses.replace(made, latency={'original': 4.0, 'converted': 2.8})

    tool = importlib.import_module('convert_digits')
    monkeypatch.setattr(tool, 'ROUNDS', 3)
    monkeypatch.setattr(tool, 'fastest', lambda model, batch: 'channels-last')
    monkeypatch.setattr(gp, 'plan', pretended)  # what a machine reaches differs
    args = [digits / 'classification', tmp_path, '--epochs', 0.3]
    status, out, err = in_process('convert_digits', *args)
    assert status == 0, err
    rows = json.loads((tmp_path / 'result.json').read_text())
    assert [row['model'] for row in rows] == ['original', 'converted', 'fine-tuned']
    assert rows[1]['macs'] == rows[2]['macs'] < rows[0]['macs']
    assert rows[0]['latency_ratio'] == 1
    for row in rows:
        expected = row['latency_ms'] / rows[0]['latency_ms']
        assert row['latency_ratio'] == pytest.approx(expected)
    assert out == (tmp_path / 'table.md').read_text()
    assert out.count('| fine-tuned |') == 1 and 'batch 16, 32 x 32 px' in out
    if met:
        assert 'budget: latency=0.7, planning measured 0.70\n' in out
    else:
        assert 'macs=0.5, because no plan met the time: the fastest plan measured takes 0.9' in out
        assert rows[1]['macs'] <= 0.5 * rows[0]['macs']
    assert (tmp_path / 'plan.png').read_bytes().startswith(b'\x89PNG')


def test_the_digits_are_timed_in_the_fastest_runtime_that_works(monkeypatch):
    tool = importlib.import_module('convert_digits')

    def ready(runtime):
        def made(model, batch):
            if runtime == 'openvino':
                raise ImportError('openvino is not installed')
            return runtime

        return made

    def time_together(calls, **options):
        milliseconds = {'onnxruntime': 3.0, 'channels-last': 2.0}
        return [Timing(name, milliseconds[name], 0, 0, 1) for name in calls]

    monkeypatch.setattr(gp.deploy, 'layer_timer', ready)
    monkeypatch.setattr(tool, 'time_together', time_together)
    assert tool.fastest(torch.nn.Identity(), torch.zeros(1, 3, 8, 8)) == 'channels-last'
