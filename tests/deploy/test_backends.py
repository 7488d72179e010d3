"""Variants of models and the rows of backends."""

import pytest
import torch

import ghost_plugin as gp
from ghost_plugin.deploy import backends


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
