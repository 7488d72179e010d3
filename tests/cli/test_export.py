"""The commands export and optimize."""

import json

import pytest
import torch

pytest.importorskip('PIL')

from ghost_plugin.cli import export as command
from ghost_plugin.cli.model_loading import load
from ghost_plugin.deploy.inference import program_fn

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def fixed():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 2))
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / 'nets.py').write_text(NET)
    return [f'{tmp_path}/nets.py:net', '--size', 16]


def test_a_file_is_written_and_compared(cli, model, tmp_path):
    status, out, err = cli('export', *model, '-o', tmp_path / 'net.pt2', '--free', 'none')
    assert status == 0 and '--free is called --dynamic now' in err
    assert '| program |' in out and (tmp_path / 'net.pt2').is_file()
    found = json.loads(cli('export', *model, '-o', tmp_path / 'net.pt2', '--json')[1])
    assert found['max_abs_diff'] < 1e-4


def test_a_profile_writes_for_an_older_compiler(cli, model, tmp_path):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    status, _, err = cli('export', *model, '-o', tmp_path / 'net.onnx', '--profile', 'rknn')
    assert status == 0, err
    assert onnx.load(tmp_path / 'net.onnx').opset_import[0].version == 12


def test_a_file_takes_pixels_of_the_preprocessing(ok, refused, model, tmp_path):
    out = ['-o', tmp_path / 'net.pt2']
    given = ['--mean', 0.2, 0.4, 0.6, '--std', 0.5, 0.5, 2, *out]
    torch.manual_seed(0)
    found = json.loads(ok('export', *model, '--uint8', 'NHWC', *given, '--json'))
    assert found['checked'][0] == [1, 16, 16, 3]
    torch.manual_seed(0)
    net = load(model[0]).model
    pixels = torch.tensor([51, 0, 255], dtype=torch.uint8).repeat(1, 16, 16, 1)
    (got,) = program_fn(out[1])([pixels])
    want = net(torch.tensor([0, -0.8, 0.2])[:, None, None].expand(1, 3, 16, 16))
    torch.testing.assert_close(got, want)
    assert '--mean and --std go with --uint8' in refused('export', *model, *given)


def test_options_are_checked(cli, refused, model, tmp_path):
    out = ['-o', tmp_path / 'net.pt2']
    assert 'go together' in refused('export', *model, *out, '--plan', 'plan.json')
    assert '--size takes one size' in refused('export', *model, 1, 2, *out)
    fixed = model[0].replace(':net', ':fixed')
    assert 'does not take images of 20 x 20 pixels' in refused('export', fixed, '--size', 20, *out)
    assert "invalid choice: 'x'" in refused('optimize', *model, '--backend', 'x')
    # the former switch may stand before the model
    status, _, err = cli('export', '--split', *model, *out)
    assert status == 2 and "works for ['.onnx', '.xml']" in err


def test_json_is_alone_where_a_config_prints(ok, tmp_path):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'net.py').write_text("""print('words of a package')
default_scope = 'mmpretrain'
model = dict(type='ImageClassifier', backbone=dict(type='ghost_plugin.GhostNet'))
""")
    out = ok('export', tmp_path / 'net.py', '--size', 32, '-o', tmp_path / 'net.pt2',
             '--dynamic', 'none', '--json')  # fmt: skip
    assert json.loads(out)['format'] == 'program'


def test_the_fastest_backend_is_named(ok, model, monkeypatch):
    options = ['--backend', 'fused', '--rounds', 2, '--device', 'cpu']
    out = ok('optimize', *model, *options)
    assert '| fused | float32 |' in out and 'fastest: fused' in out
    found = json.loads(ok('optimize', *model, *options, '--batch', 2, '--json'))
    assert found['shapes'] == [[2, 3, 16, 16]]
    assert [trial['backend'] for trial in found['trials']] == ['eager', 'fused']
    assert command.DYNAMIC['all'] is True
