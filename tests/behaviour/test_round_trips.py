"""Converted models saved, copied, exported, compiled; dense weights into converted models."""

import copy
import inspect
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.utils.torch_compat import TRACED

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
ALL = {'keep_first': False, 'keep_last': False}


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 15, 3, bias=False), nn.BatchNorm2d(15), nn.ReLU(),
        nn.Conv2d(15, 16, 3, padding=1, padding_mode='reflect'), nn.Conv2d(16, 12, 1),
    ).eval()  # fmt: skip


RESTORE = """
import json, sys, torch
import ghost_plugin as gp
from network import net

model = gp.ConversionPlan.load('plan.json').apply(net(), inherit=False)
model.load_state_dict(torch.load('weights.pt', weights_only=True), strict=True)
saved = torch.load('maps.pt', weights_only=True)
print(torch.equal(model(saved['x']), saved['y']))
"""


def restored(converted):
    buffer = io.BytesIO()
    torch.save(converted, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    'twin',
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        restored,
        lambda m: torch.optim.swa_utils.AveragedModel(m),
        lambda m: torch.jit.script(m),
        lambda m: torch.jit.trace(m, X),
        lambda m: torch.export.export(m, (X,)).module(),
        lambda m: torch.fx.symbolic_trace(m),
        lambda m: torch.compile(m, backend='aot_eager', fullgraph=True),
    ],
    ids=['deepcopy', 'pickle', 'torch.save', 'EMA', 'script', 'trace', 'export', 'fx', 'compile'],
)
def test_forms_of_a_converted_model_give_the_same(twin):
    converted, _ = gp.convert(net(), X, **ALL)
    converted.requires_grad_(False)
    torch.testing.assert_close(twin(converted)(X), converted(X), rtol=1e-5, atol=1e-5)


def test_averaged_model_follows_and_converts():
    converted, _ = gp.convert(net(), X, **ALL)
    average = torch.optim.swa_utils.AveragedModel(converted, use_buffers=True)
    average.update_parameters(converted)
    assert torch.equal(average(X), converted(X))
    inside, plan = gp.convert(torch.optim.swa_utils.AveragedModel(net()), X, **ALL)
    assert all(row.name.startswith('module.') for row in plan.layers if row.converts)
    assert inside(X).shape == converted(X).shape


def test_onnx_gives_the_same(tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    converted, _ = gp.convert(net(), X, **ALL)
    path = str(tmp_path / 'model.onnx')
    torch.onnx.export(converted, (X,), path, **TRACED, input_names=['x'])
    (maps,) = runtime.InferenceSession(path).run(None, {'x': X.numpy()})
    torch.testing.assert_close(torch.from_numpy(maps), converted(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('inherit', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_plan_and_weights_restore_in_a_new_process(inherit, tmp_path):
    source = f'import torch\nfrom torch import nn\n\n{inspect.getsource(net)}'
    (tmp_path / 'network.py').write_text(source)
    converted, plan = gp.convert(net(), X, inherit=inherit, **ALL)
    plan.save(tmp_path / 'plan.json')
    torch.save(converted.state_dict(), tmp_path / 'weights.pt')
    torch.save({'x': X, 'y': converted(X)}, tmp_path / 'maps.pt')
    path = os.pathsep.join([str(Path(gp.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
    run = subprocess.run(
        [sys.executable, '-c', RESTORE], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )  # fmt: skip
    assert run.stdout.strip() == 'True', run.stderr


@pytest.mark.parametrize('options', [{}, {'ratio': 3}, {'cheap': 'linear'}, {'cheap': 'shift'}])
def test_dense_checkpoints_load_into_a_converted_model(options, tmp_path):
    model = net()
    converted, plan = gp.convert(model, X, **ALL, **options)
    fresh = plan.apply(net(), inherit=False)
    fresh.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(fresh(X), converted(X), rtol=1e-4, atol=1e-4)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'dense.pt')
    other = plan.apply(net(), inherit=False)
    gp.load_weights(other, tmp_path / 'dense.pt')
    torch.testing.assert_close(other(X), converted(X), rtol=1e-4, atol=1e-4)


def test_loading_leaves_the_given_weights_alone():
    model = net()
    _, plan = gp.convert(model, X, **ALL)
    state = model.state_dict()
    plan.apply(net(), inherit=False).load_state_dict(state)
    assert list(state) == list(net().state_dict())


def test_a_row_edited_to_one_takes_dense_weights():
    model = net()
    plan = gp.plan(model, X, **ALL)
    for row in plan.layers:
        plan = plan.replace_layer(row.name, ratio=1)
    twin = plan.apply(net(), inherit=False)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(X), model(X))


def test_dense_weights_of_another_shape_are_refused():
    converted, _ = gp.convert(net(), X, **ALL)
    state = net().state_dict()
    state['3.weight'] = state['3.weight'][:8]
    with pytest.raises((ValueError, RuntimeError), match='8, 15, 3, 3'):
        converted.load_state_dict(state)


def test_features_of_a_converted_model_and_a_converted_extractor():
    extraction = pytest.importorskip('torchvision.models.feature_extraction')
    converted, plan = gp.convert(net(), X, **ALL)
    inner = converted[:3](X)
    names = {'2': 'maps'}
    extractor = extraction.create_feature_extractor(converted, return_nodes=names)
    assert torch.equal(extractor(X)['maps'], inner)
    dense = extraction.create_feature_extractor(net(), return_nodes=names)
    changed, plan = gp.convert(dense, X, **ALL)
    assert [row.converts for row in plan.layers] == [True]
    assert changed(X)['maps'].shape == inner.shape


@pytest.mark.parametrize(
    'change, said',
    [
        ({'ratio': 0.5}, 'ratio'),
        ({'dw_size': 4}, 'dw_size'),
        ({'cheap': 'magic'}, 'cheap'),
        ({'decision': 'maybe'}, 'decision'),
        ({'ratoi': 2}, 'ratoi'),
    ],
)
def test_rows_edited_wrongly_are_named_when_they_load(change, said, tmp_path):
    content = gp.plan(net(), X, **ALL).as_dict()
    content['rows'][1].update(change)
    (tmp_path / 'plan.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        gp.ConversionPlan.load(tmp_path / 'plan.json')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_dense_weights_are_assigned_to_a_model_without_any(dtype):
    with torch.device('meta'):
        empty, _ = gp.convert(net(), torch.randn(2, 3, 12, 12), **ALL)
    dense = net().to(dtype)
    empty.load_state_dict(dense.state_dict(), assign=True)
    assert {p.dtype for p in empty.parameters()} == {dtype}
    want, _ = gp.convert(dense, X.to(dtype), **ALL)
    torch.testing.assert_close(empty(X.to(dtype)), want(X.to(dtype)))


def test_a_dense_weight_that_does_not_fit_names_its_conv():
    converted, _ = gp.convert(net(), X, **ALL)
    weights = net().state_dict() | {'3.weight': torch.zeros(16, 9, 3, 3)}
    with pytest.raises(ValueError, match=r"'3': the dense weight \(16, 9, 3, 3\)"):
        converted.load_state_dict(weights)
