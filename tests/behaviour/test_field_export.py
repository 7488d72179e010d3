"""Export: older opsets, names of inputs and outputs, and inputs that are no images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.export_formats import FORMATS
from ghost_plugin.utils import optional

needs_onnx = pytest.mark.skipif(
    not optional.usable('onnx', 'onnxruntime'), reason='needs onnx and onnxruntime'
)


def need(suffix):
    names = {'.onnx': ('onnx', 'onnxruntime'), '.xml': ('onnx', 'openvino')}.get(suffix, ())
    if not optional.usable(*names):
        pytest.skip(f'needs {names}')


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


class Net(nn.Module):
    """Calls a function with its layers and what it is called with."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleDict(layers)
        self.eval()

    def forward(self, *inputs):
        return self.function(self.layers, *inputs)


def conv(net, x):
    return net['conv'](x)


def image_net(function=conv):
    return Net(function, conv=nn.Conv2d(3, 4, 3, padding=1))


def opset_of(path):
    import onnx

    return next(own.version for own in onnx.load(path).opset_import if not own.domain)


@needs_onnx
@pytest.mark.parametrize('opset', [11, 12, 13, 17])
@pytest.mark.parametrize(
    'build',
    [
        lambda: gp.GhostNet(0.25, out_indices=(1, 3)),
        lambda: gp.GhostNetV2(0.25, out_indices=(1, 2)),
        lambda: gp.GhostNet(0.25, cheap='shift', ratio=3, out_indices=(1, 2)),
        lambda: gp.GGhostRegNet('002', out_indices=(1, 3)),
    ],
)
def test_older_opsets_are_written_and_checked(build, opset, noise, tmp_path):
    path = tmp_path / 'net.onnx'
    report = gp.export_onnx(build().eval(), noise(1, 3, 64, 96), path, opset=opset)
    assert report.exporter == 'trace'
    assert report.max_rel_diff <= 1e-4
    assert opset_of(path) == opset


@needs_onnx
@pytest.mark.parametrize('opset', [11, 12])
def test_split_files_of_older_opsets(opset, noise, tmp_path):
    path = tmp_path / 'net.onnx'
    net = gp.GhostNet(0.25, out_indices=(1, 2)).eval()
    names = {'input_names': ['images'], 'output_names': ['fine', 'coarse']}
    report = gp.export(net, noise(16, 3, 96, 96), path, opset=opset, split_concat=True, **names)
    assert report.max_rel_diff <= 1e-4
    assert opset_of(path) == opset
    assert names_of(path) == (['images'], ['fine', 'coarse'])


@needs_onnx
@pytest.mark.parametrize(
    ('function', 'operator', 'opset'),
    [
        (lambda net, x: nn.functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1)), 'grid', 11),
        (lambda net, x: torch.linalg.svd(x)[1], 'svd', 13),
        (lambda net, x: nn.functional.scaled_dot_product_attention(x, x, x), 'scaled_dot', 12),
    ],
)
def test_operators_that_need_more_are_named(function, operator, opset, noise, tmp_path):
    options = {'opset': opset, 'dynamic': 'batch'}
    with pytest.raises(ValueError, match=rf'nothing was written; trace: .*{operator}.*opset 17'):
        gp.export(Net(function), noise(1, 3, 8, 8), tmp_path / 'net.onnx', **options)
    assert not list(tmp_path.iterdir())


def test_opsets_that_cannot_be(noise, tmp_path):
    net, x, path = image_net(), noise(1, 3, 8, 8), tmp_path / 'net.onnx'
    with pytest.raises(ValueError, match='opset must be 11 or newer, got 10'):
        gp.export(net, x, path, opset=10)
    with pytest.raises(ValueError, match="'dynamo' exporter writes opset 18 or newer, got 12"):
        gp.export(net, x, path, opset=12, exporter='dynamo')


def names_of(path):
    if path.suffix == '.onnx':
        import onnx

        graph = onnx.load(path).graph
        return [x.name for x in graph.input], [x.name for x in graph.output]
    import openvino

    model = openvino.Core().read_model(path)
    return [x.any_name for x in model.inputs], [x.any_name for x in model.outputs]


def nested(net, image, mask):
    maps = net['conv'](image)
    return {'masked': maps * mask, 'more': [maps, maps.mean()]}


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_names_of_several_inputs_and_nested_outputs(suffix, noise, tmp_path):
    need(suffix)
    path = tmp_path / f'net{suffix}'
    given = noise(1, 3, 16, 16), noise(1, 1, 16, 16)
    names = ['images', 'masks'], ['masked', 'maps', 'mean']
    report = gp.export(image_net(nested), given, path, input_names=names[0], output_names=names[1])
    assert names_of(path) == names
    assert report.free['images'] == {0: 'batch', 2: 'images_height', 3: 'images_width'}
    assert report.free['masks'] == {0: 'batch', 2: 'masks_height', 3: 'masks_width'}


@needs_onnx
@pytest.mark.parametrize('exporter', ['trace', 'dynamo'])
def test_free_axes_are_named(exporter, noise, tmp_path):
    if exporter == 'dynamo' and not (optional.usable('onnxscript') and torch.__version__ > '2.7'):
        pytest.skip('needs onnxscript and torch 2.7')
    import onnx

    path = tmp_path / 'net.onnx'
    options = {'input_names': ['images'], 'output_names': ['maps'], 'exporter': exporter}
    gp.export(image_net(), noise(1, 3, 16, 20), path, **options)
    (value,) = onnx.load(path).graph.input
    shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    assert shape == ['batch', 3, 'height', 'width']
    assert names_of(path) == (['images'], ['maps'])


@pytest.mark.parametrize(
    ('names', 'error', 'said'),
    [
        ({'input_names': ['a', 'b']}, ValueError, r"name for each, got \['a', 'b'\].* has 1: .*16"),
        ({'output_names': []}, ValueError, r'name for each, got \[\]; the model has 1: output'),
        ({'output_names': ['']}, ValueError, 'must not hold empty names'),
        ({'input_names': 'images'}, TypeError, "must be a list of names, got 'images'"),
        ({'input_names': [3]}, TypeError, r'must be a list of names, got \[3\]'),
        ({'input_names': ['x'], 'output_names': ['x']}, ValueError, r"both are called \['x'\]"),
    ],
)
def test_names_that_cannot_be(names, error, said, noise, tmp_path):
    with pytest.raises(error, match=said):
        gp.export(image_net(), noise(1, 3, 16, 16), tmp_path / 'net.onnx', **names)
    assert not list(tmp_path.iterdir())


def test_a_name_twice(noise, tmp_path):
    pair = noise(1, 3, 16, 16), noise(1, 1, 16, 16)
    with pytest.raises(ValueError, match=r"must hold different names, got \['x', 'x'\]"):
        gp.export(image_net(nested), pair, tmp_path / 'net.onnx', input_names=['x', 'x'])


@pytest.mark.parametrize('suffix', ['.pt', '.pt2'])
def test_formats_without_names_say_so(suffix, noise, tmp_path):
    with pytest.raises(ValueError, match=r"files hold no names .* one of \['.onnx', '.xml'\]"):
        path = tmp_path / f'net{suffix}'
        gp.export(image_net(), noise(1, 3, 16, 16), path, input_names=['images'])


@needs_onnx
def test_names_stay_in_int8(noise, tmp_path):
    path = tmp_path / 'net.onnx'
    batches = [noise(2, 3, 16, 16) for _ in range(2)]
    options = {'input_names': ['images'], 'output_names': ['maps'], 'depthwise': 'int8'}
    gp.quantize(image_net(), batches, path, **options)
    assert names_of(path) == (['images'], ['maps'])


@needs_onnx
def test_the_tool_takes_names_and_older_opsets(tmp_path):
    pytest.importorskip('timm')
    tool = [sys.executable, str(Path(__file__).parents[2] / 'tools' / 'export.py')]
    out = tmp_path / 'net.onnx'
    options = ['timm:ghostnet_plugin_050', '--size', '64', '--num-classes', '5', '--json']
    names = ['--input-names', 'images', '--output-names', 'scores', '--opset', '12']
    done = subprocess.run([*tool, *options, *names, '-o', out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    free = {'images': {'0': 'batch', '2': 'height', '3': 'width'}}
    assert json.loads(done.stdout)['free'] == free
    assert names_of(out) == (['images'], ['scores'])
    assert opset_of(out) == 12


def video(net, x):
    n, t, c, h, w = x.shape
    return net['conv'](x.reshape(n * t, c, h, w)).reshape(n, t, 4, h, w).mean((1, 3, 4))


def segments(net, x):
    return net['conv'](x).mean((2, 3)).view(-1, 4, 4).mean(1)


def one_image(net, x):
    assert len(x) == 1, 'one image at a time'
    return net['conv'](x)


IMAGE = {0: 'batch', 2: 'height', 3: 'width'}
# A network, shapes of its inputs, what is free, shapes that the file shall take, too.
LAYOUTS = {
    'video': (lambda: image_net(video), [(1, 5, 3, 8, 8)], [{0: 'batch'}], [(4, 5, 3, 8, 8)]),
    'tokens': (lambda: Net(conv, conv=nn.Linear(8, 4)), [(1, 7, 8)], [{0: 'batch'}], [(5, 7, 8)]),
    'features': (lambda: Net(conv, conv=nn.Linear(8, 4)), [(2, 8)], [{0: 'batch'}], [(5, 8)]),
    'sequence and state': (
        lambda: Net(lambda net, x, h: net['gru'](x, h), gru=nn.GRU(8, 6)),
        [(7, 2, 8), (1, 2, 6)],
        [{1: 'batch'}, {1: 'batch'}],
        [(7, 4, 8), (1, 4, 6)],
    ),
    'channels last': (
        lambda: image_net(lambda net, x: net['conv'](x.permute(0, 3, 1, 2))),
        [(1, 16, 20, 3)],
        [{0: 'batch', 1: 'height', 2: 'width'}],
        [(4, 40, 23, 3)],
    ),
    'channels last of one size': (
        lambda: Net(lambda net, x: net['fc'](x.flatten(1)), fc=nn.Linear(8 * 9 * 3, 2)),
        [(1, 8, 9, 3)],
        [{0: 'batch'}],
        [(4, 8, 9, 3)],
    ),
    'batch third': (
        lambda: image_net(lambda net, x: net['conv'](x.permute(2, 3, 0, 1))),
        [(16, 20, 1, 3)],
        [{0: 'height', 1: 'width', 2: 'batch'}],
        [(23, 40, 4, 3)],
    ),
    'no batch': (image_net, [(3, 16, 20)], [{}], [(3, 16, 20)]),
    'one vector': (
        lambda: Net(lambda net, x: net['fc'](x[None])[0], fc=nn.Linear(5, 2)),
        [(5,)],
        [{}],
        [(5,)],
    ),
    'batch of one': (
        lambda: image_net(one_image),
        [(1, 3, 16, 16)],
        [{2: 'height', 3: 'width'}],
        [(1, 3, 40, 23)],
    ),
    'batch of segments': (lambda: image_net(segments), [(4, 3, 8, 8)], [IMAGE], [(8, 3, 40, 23)]),
    'image and number': (
        lambda: image_net(lambda net, x, s: net['conv'](x) * s),
        [(1, 3, 16, 16), ()],
        [{0: 'batch', 2: 'input_0_height', 3: 'input_0_width'}, {}],
        [(4, 3, 40, 23), ()],
    ),
    'samples and a table': (
        lambda: Net(lambda net, x, table: x[:, None] * table[None]),
        [(1, 4), (6, 4)],
        [{0: 'batch'}, {0: 'input_1_batch'}],
        [(5, 4), (3, 4)],
    ),
    'samples and one scale': (
        lambda: Net(lambda net, x, scale: x * scale),
        [(2, 4), (4,)],
        [{0: 'batch'}, {}],
        [(5, 4), (4,)],
    ),
    'image and template': (
        lambda: Net(
            lambda net, z, x: net['conv'](x) + net['fc'](z.flatten(1))[:, :, None, None],
            conv=nn.Conv2d(3, 4, 3),
            fc=nn.Linear(3 * 8 * 8, 4),
        ),
        [(1, 3, 8, 8), (1, 3, 16, 16)],
        [{0: 'batch'}, {0: 'batch', 2: 'input_1_height', 3: 'input_1_width'}],
        [(4, 3, 8, 8), (4, 3, 40, 23)],
    ),
}


@pytest.mark.parametrize('suffix', ['.onnx', '.xml', '.pt'])
@pytest.mark.parametrize('name', LAYOUTS)
def test_layouts_of_all_kinds(name, suffix, noise, tmp_path):
    need(suffix)
    build, shapes, free, others = LAYOUTS[name]
    net, path = build(), tmp_path / f'net{suffix}'
    report = gp.export(net, tuple(noise(*shape) for shape in shapes), path, exporter='trace')
    assert list(report.free.values()) == free
    given = tuple(noise(*shape) for shape in others)
    want = net(*given)
    got = FORMATS[suffix].read(path)(given)
    for a, b in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    json.dumps(report.as_dict())


@needs_onnx
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
def test_images_of_integers_are_of_any_size(dtype, noise, tmp_path):
    net, path = image_net(lambda net, x: net['conv'](x.float() / 255)), tmp_path / 'net.onnx'
    report = gp.export(net, (50 * noise(1, 3, 16, 20).abs()).to(dtype), path)
    assert report.free == {'input': IMAGE}
    assert (3, 3, 48, 116) in report.checked


@needs_onnx
def test_ids_are_of_any_batch(tmp_path):
    net = Net(lambda net, ids: net['embed'](ids).mean(1), embed=nn.Embedding(10, 4))
    report = gp.export(net, torch.tensor([[1, 9, 3]]), tmp_path / 'net.onnx')
    assert report.free == {'input': {0: 'batch'}}


@needs_onnx
@pytest.mark.parametrize('dynamic', ['batch', False])
def test_less_can_be_asked_for(dynamic, noise, tmp_path):
    report = gp.export(image_net(), noise(1, 3, 8, 8), tmp_path / 'net.onnx', dynamic=dynamic)
    assert report.free == {'input': {0: 'batch'} if dynamic else {}}


@needs_onnx
def test_a_mask_grows_with_its_image(noise, tmp_path):
    net = image_net(lambda net, x, mask: net['conv'](x) * mask)
    pair = noise(1, 3, 16, 16), noise(1, 1, 16, 16) > 0
    report = gp.export(net, pair, tmp_path / 'net.onnx')
    assert all(len(axes) == 3 for axes in report.free.values())
