"""Files for older compilers: right values, and no operator that the compiler does not know."""

import pytest
import torch
from torch import nn

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

import ghost_plugin as gp
from ghost_plugin.deploy.export_formats import FORMATS
from ghost_plugin.deploy.profiles import PROFILES, ROWS

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
FAMILIES = (
    'ghostnet_plugin_050',
    'ghostnet_plugin_v2_100',
    'ghostnet_plugin_v3_050',
    'ghostnet_plugin_rep_050',
    'ghostnet_plugin_gghost_032',
)
CONVERTED = ('resnet18', 'tf_efficientnet_lite0', 'mobilenetv3_small_100')


@pytest.fixture(scope='module', params=[*FAMILIES, *CONVERTED])
def network(request):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=5).eval()
    return model if request.param in FAMILIES else gp.convert(model, X)[0].eval()


@pytest.mark.parametrize('name', PROFILES)
def test_every_network_fits_every_profile(name, network, tmp_path):
    path, profile = tmp_path / 'net.onnx', PROFILES[name]
    report = gp.export(network, X, path, profile=name)
    assert report.free == {'input': {}}
    (got,) = FORMATS['.onnx'].read(path)([X])
    torch.testing.assert_close(got, network(X), rtol=1e-4, atol=1e-5)
    model = onnx.load(path)
    assert [(one.domain, one.version) for one in model.opset_import] == [('', profile.opset)]
    assert {node.op_type for node in model.graph.node} <= profile.operators
    assert [file.name for file in tmp_path.iterdir()] == ['net.onnx']


@pytest.mark.parametrize('name', PROFILES)
@pytest.mark.parametrize(
    'layer', [nn.Hardsigmoid, nn.Hardswish, nn.ReLU6, lambda: nn.Hardtanh(-2, 3)]
)
def test_activations_that_a_compiler_lacks_are_rewritten(layer, name, tmp_path):
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), layer()).eval(), 9 * torch.randn(1, 3, 8, 8)
    path = tmp_path / 'net.onnx'
    gp.export(net, x, path, profile=name)
    (got,) = FORMATS['.onnx'].read(path)([x])
    torch.testing.assert_close(got, net(x), rtol=1e-5, atol=1e-6)


def test_an_unknown_operator_is_named_with_its_node_and_a_remedy(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU())
    message = r'RKNN.* does not know .* Erf \(.*1/Erf\); replace these .* leave profile=[^;]*out$'
    with pytest.raises(ValueError, match=message):
        gp.export(net.eval(), X, tmp_path / 'net.onnx', profile='rknn')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'profile': 'caffe'}, "profile must be one of .*'rknn'.*, got 'caffe'"),
        ({'profile': 'rknn', 'opset': 11}, 'has opset 12, got 11; leave it out'),
        ({'profile': 'rknn', 'portable': False}, 'needs portable=True'),
        ({'profile': 'rknn', 'dynamic': 'batch'}, 'have a fixed batch'),
    ],
)
def test_options_that_contradict_a_profile_are_refused(options, message, residual, tmp_path):
    with pytest.raises(ValueError, match=message):
        gp.export(residual, X, tmp_path / 'net.onnx', **options)


def test_a_profile_is_for_onnx_files_only(residual, tmp_path):
    with pytest.raises(ValueError, match=r'works for \.onnx files, got openvino'):
        gp.export(residual, X, tmp_path / 'net.xml', profile='rknn')


def test_names_differ_and_sources_are_given():
    assert len(PROFILES) == len(ROWS)
    assert all(row.source.startswith('https://') for row in ROWS)
