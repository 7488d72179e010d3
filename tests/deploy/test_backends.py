"""Variants of models and the rows of backends."""

import pytest
import torch

import ghost_plugin as gp
from ghost_plugin.deploy import backends
from ghost_plugin.utils import optional


def test_the_first_call_of_each_shape_may_do_something_else():
    calls = []
    run = backends._first_call_per_shape(
        lambda x: calls.append('first'), lambda x: calls.append('later')
    )
    for size in (1, 1, 2, 1, 2):
        run([torch.zeros(size)])
    assert calls == ['first', 'later', 'first', 'later', 'later']


def test_variants_are_built_once(converted, monkeypatch):
    calls = []
    monkeypatch.setattr(backends, 'fuse', lambda model: calls.append(1) or gp.fuse(model))
    variants = backends.ModelVariants(converted, torch.randn(1, 3, 16, 16))
    assert variants.channels_last is variants.channels_last
    assert variants.fused is variants.fused
    assert calls == [1]


def test_a_layer_timer_gives_a_call():
    call = backends.layer_timer('fused')(torch.nn.Conv2d(3, 4, 1).eval(), torch.ones(1, 3, 2, 2))
    assert call()[0].shape == (1, 4, 2, 2)
    with pytest.warns(DeprecationWarning, match='use gp.deploy.layer_timer'):
        gp.deploy.ready('fused')
    with pytest.raises(ValueError, match="'openvino-split' was removed; use 'openvino' with"):
        backends.layer_timer('openvino-split')


def test_labels_differ():
    labels = [row.label for row in backends.ROWS]
    assert len(set(labels)) == len(labels)
    assert 'onnxruntime, split_concat' in labels


@pytest.mark.parametrize('backend', ['ncnn', 'litert', 'executorch'])
def test_runtimes_of_phones_are_left_out_where_they_are_not_installed(
    backend, residual, monkeypatch
):
    row, example = backends.BACKENDS[backend], torch.randn(1, 3, 16, 16)
    monkeypatch.setattr(optional, 'failure', lambda name: 'ModuleNotFoundError')
    found = row.try_build(backends.ModelVariants(residual, example))
    assert found.run is None
    assert found.reason == f'{row.needs[0]} is not installed'
    with pytest.raises(ImportError, match=f'{backend} does not work here: {row.needs[0]} is not'):
        gp.optimize(residual, example, backend, rounds=1)


def test_a_batch_is_no_case_for_ncnn(residual):
    row = backends.BACKENDS['ncnn']
    if not optional.usable(*row.needs):
        pytest.skip(f'needs {row.needs}')
    found = row.try_build(backends.ModelVariants(residual, torch.randn(2, 3, 16, 16)))
    assert 'ncnn has no axis for the batch' in found.reason


def test_executorch_is_left_out_with_other_threads_than_it_started_with(residual, monkeypatch):
    row = backends.BACKENDS['executorch']
    if not optional.usable(*row.needs):
        pytest.skip(f'needs {row.needs}')
    monkeypatch.setattr(backends, 'executorch_threads', lambda: torch.get_num_threads() + 1)
    found = row.try_build(backends.ModelVariants(residual, torch.randn(1, 3, 16, 16)))
    assert 'start a process for each number of threads' in found.reason
