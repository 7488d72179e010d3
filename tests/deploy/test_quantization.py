import dataclasses
import importlib
import json

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.comparison import differences
from ghost_plugin.deploy.export_formats import FORMATS
from ghost_plugin.utils import optional

NEEDS = {'.onnx': ('onnx', 'onnxruntime'), '.xml': ('onnx', 'onnxruntime', 'openvino', 'nncf')}


@pytest.fixture
def batches():
    return [torch.randn(4, 3, 32, 32) for _ in range(6)]


class Inverted(nn.Module):
    """An expansion, a depthwise conv and a projection around a shortcut."""

    def __init__(self, maps):
        super().__init__()
        self.expand, self.act = nn.Conv2d(maps, 2 * maps, 1), nn.ReLU6()
        self.dw = nn.Conv2d(2 * maps, 2 * maps, 3, 1, 1, groups=2 * maps)
        self.project = nn.Conv2d(2 * maps, maps, 1)

    def forward(self, x):
        return x + self.project(self.act(self.dw(self.act(self.expand(x)))))


@pytest.mark.slow  # see below
@pytest.mark.parametrize('ratio', [1.5, 2])
def test_stored_orders_in_front_of_shortcuts_compile_in_int8(ratio, batches, tmp_path):
    if not optional.usable(*NEEDS['.xml']):
        pytest.skip(f'needs {NEEDS[".xml"]}')
    torch.manual_seed(0)
    blocks = (Inverted(32) for _ in range(3))
    net = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), *blocks, nn.Conv2d(32, 8, 1)).eval()
    include = {'1.project': {'ratio': ratio}, '2.project': {}}
    model, _ = gp.convert(net, batches[0], include=include, dw_size=1)
    assert any(name.endswith('.order') for name in gp.fuse(model).state_dict())
    report = gp.quantize(model, batches, tmp_path / 'net.xml', depthwise='int8')
    assert 0 < report.typical < 0.2


@pytest.mark.parametrize('depthwise', ['auto', 'int8', 'float'])
# NNCF makes Cores of OpenVINO beside ours (see inference.openvino_core): whatever starts workers in
# the same process later can crash, so it runs apart from the default tests.
@pytest.mark.parametrize('suffix', ['.onnx', pytest.param('.xml', marks=pytest.mark.slow)])
def test_int8_lies_near_the_model_and_says_how_near(
    suffix, depthwise, converted, batches, tmp_path
):
    if not optional.usable(*NEEDS[suffix]):
        pytest.skip(f'needs {NEEDS[suffix]}')
    path = tmp_path / f'net{suffix}'
    report = gp.quantize(converted, batches, path, depthwise=depthwise)
    assert report.depthwise == (depthwise if depthwise != 'auto' else report.depthwise)
    assert set(report.times) - {'float32'} == (
        {'float', 'int8'} if depthwise == 'auto' else {depthwise}
    )
    assert 0 < report.typical < 0.1
    x = torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        want = converted(x)
    found = differences(FORMATS[suffix].read(path)([x]), want)
    assert 0 < found.typical < 0.2
    weights = path.with_suffix(suffix.replace('xml', 'bin'))
    assert weights.stat().st_size < report.float_size
    if suffix == '.onnx':
        assert len(report.layers) > 5
        assert all(0 <= error < 0.5 for error in report.layers.values())
        assert report.table(3).count('\n') == 4
    json.dumps(report.as_dict())


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'path': 'net.pt'}, r"must end in one of \['.onnx', '.xml', '.tflite'\]"),
        ({'depthwise': 'maybe'}, "depthwise must be one of .*got 'maybe'"),
        ({'calibration': []}, 'calibration holds no input'),
    ],
)
def test_wrong_options_are_named(options, said, residual, batches, tmp_path):
    if not optional.usable(*NEEDS['.onnx']):
        pytest.skip('needs onnxruntime')
    path = tmp_path / options.pop('path', 'net.onnx')
    with pytest.raises(ValueError, match=said):
        gp.quantize(residual, options.pop('calibration', batches), path, **options)
    assert not list(tmp_path.iterdir())


class Pair(nn.Module):
    """Gives something else when its inputs are swapped or the scale is another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, left, right, scale=1.0):
        return self.conv(left) - 3 * self.conv(right) * scale


@pytest.fixture
def pairs():
    right, left = torch.randn(2, 2, 3, 8, 8)
    return [{'right': right, 'left': left, 'scale': 5.0}] * 3


def test_batches_are_taken_by_name_and_with_all_that_they_hold(pairs, tmp_path):
    if not optional.usable(*NEEDS['.onnx']):
        pytest.skip('needs onnxruntime')
    net, (batch, *_) = Pair().eval(), pairs
    others = [(batch['left'], batch['right'], 5.0), {'left': batch['left'], **batch}]
    gp.quantize(net, [batch, *others], tmp_path / 'net.onnx', depthwise='float')
    got = FORMATS['.onnx'].read(tmp_path / 'net.onnx')([batch['right'], batch['left']])
    assert differences(got, net(**batch)).typical < 0.1


def test_the_runtime_gives_int8_its_tensors_in_the_order_of_the_example(pairs):
    if not optional.usable(*NEEDS['.onnx']):
        pytest.skip('needs onnxruntime')
    net, (batch, *_) = Pair().eval(), pairs
    example = (batch['left'], batch['right'], 5.0)
    fast = gp.optimize(net, example, 'onnxruntime-int8', calibration=pairs, rounds=1)
    assert differences(fast(**batch), net(**batch)).typical < 0.1


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ([(torch.ones(2, 3, 8, 8), torch.arange(2))], 'batch 0 .* nothing else, such as labels'),
        ([{}, {'left': None}], "batch 1 .* 'left' must be a tensor, got NoneType"),
        ([{}, {}, {'scale': 2.0}], "batch 2 .* 'scale' is 5.0 in the example and is fixed"),
        ([{}, {'left': torch.ones(2, 4, 8, 8)}], 'batch 1 .* 3 channels, but got 4 channels'),
        ([{}, {}, {'left': torch.ones(2, 3, 8, 8).double()}], 'batch 2 .* should be the same'),
        ([{}, {'label': torch.arange(2)}], "batch 1 .* 'label' is not known.* such as labels"),
    ],
)
def test_batches_that_are_no_inputs_are_named(changes, said, pairs, tmp_path):
    if not optional.usable(*NEEDS['.onnx']):
        pytest.skip('needs onnxruntime')
    batches = [
        {**batch, **change} if isinstance(change, dict) else change
        for batch, change in zip(pairs, changes, strict=False)
    ]
    with pytest.raises(ValueError, match=said):
        gp.quantize(Pair().eval(), batches, tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(residual, batches, tmp_path, monkeypatch):
    monkeypatch.setattr(optional, 'failure', lambda name: 'ModuleNotFoundError: gone')
    with pytest.raises(ImportError, match=r"pip install 'ghost_plugin\[export\]'"):
        gp.quantize(residual, batches, tmp_path / 'net.onnx')


def zeros_of(kinds, monkeypatch):
    """Let ONNX Runtime give zeros for files in int8 of some kinds, as a broken runtime would."""
    libraries = importlib.import_module('ghost_plugin.deploy.quantization')._LIBRARIES
    row = libraries['.onnx']

    def read(path):
        run = row.read(path)
        broken = path.stem in kinds
        return (lambda batch: [0 * value for value in run(batch)]) if broken else run

    monkeypatch.setitem(libraries, '.onnx', dataclasses.replace(row, read=read))


def test_a_runtime_that_computes_something_else_leaves_the_older_file(
    converted, batches, tmp_path, monkeypatch
):
    if not optional.usable(*NEEDS['.onnx']):
        pytest.skip('needs onnxruntime')
    zeros_of(('int8', 'float'), monkeypatch)
    path = tmp_path / 'net.onnx'
    path.write_text('older')
    said = 'onnxruntime computes wrong int8 .* 1.00 with depthwise float.*nothing was written'
    with pytest.raises(ValueError, match=said):
        gp.quantize(converted, batches, path)
    assert path.read_text() == 'older'


@pytest.mark.parametrize(('wrong', 'taken'), [('int8', 'float'), ('float', 'int8')])
def test_the_kind_that_computes_the_model_is_taken(
    wrong, taken, converted, batches, tmp_path, monkeypatch
):
    if not optional.usable(*NEEDS['.onnx']):
        pytest.skip('needs onnxruntime')
    zeros_of((wrong,), monkeypatch)
    report = gp.quantize(converted, batches, tmp_path / 'net.onnx')
    assert report.depthwise == taken
    assert set(report.times) == {'float32', taken}
    assert report.typical < 0.1


@pytest.mark.parametrize('wrong', [False, True])
def test_a_runtime_that_fails_with_free_sizes_is_named(wrong, converted, tmp_path, caplog):
    if not optional.usable('onnx', 'openvino'):
        pytest.skip('needs openvino')
    module = importlib.import_module('ghost_plugin.deploy.quantization')
    sign = -1 if wrong else 1
    x = torch.randn(2, 3, 32, 32)
    gp.export(converted, x, tmp_path / 'net.xml')
    with torch.no_grad():
        module._warn_of_dynamic_axes(
            tmp_path / 'net.xml', lambda batch: [sign * converted(*batch)], [x]
        )
    assert ('model.reshape' in caplog.text) == wrong


LITERT = ('litert_torch', 'ai_edge_litert', 'ai_edge_quantizer')


@pytest.mark.parametrize('depthwise', ['int8', 'float'])
def test_litert_takes_and_returns_float32(depthwise, converted, tmp_path):
    if not optional.usable(*LITERT):
        pytest.skip(f'needs {LITERT}')
    path = tmp_path / 'net.tflite'
    given = [torch.randn(1, 3, 32, 32) for _ in range(20)]
    report = gp.quantize(converted, given, path, depthwise=depthwise)
    assert (report.library, report.depthwise) == ('litert', depthwise)
    assert set(report.times) == {'float32', depthwise}
    assert 0 < report.typical < 0.15
    assert list(tmp_path.iterdir()) == [path] and report.size == path.stat().st_size
    (got,) = FORMATS['.tflite'].read(path)(given[:1])
    assert got.dtype == torch.float32
    assert differences(got, converted(given[0])).typical < 0.15


class Stem(nn.Module):
    """A Ghost conv whose ReLU6 cuts most of its values off."""

    def __init__(self):
        super().__init__()
        self.ghost, self.act = gp.GhostConv2d(3, 16, 3), nn.ReLU6()
        self.head = nn.Conv2d(16, 16, 3, groups=16)
        with torch.no_grad():
            self.ghost.primary_conv.weight.mul_(60)

    def forward(self, x):
        return self.head(self.act(self.ghost(x)))


def test_litert_keeps_layers_in_float_that_int8_would_leave_few_levels(tmp_path, monkeypatch):
    if not optional.usable(*LITERT):
        pytest.skip(f'needs {LITERT}')
    module = importlib.import_module('ghost_plugin.deploy.quantization')
    given = [torch.randn(1, 3, 24, 24) for _ in range(20)]
    net, errors = Stem().eval(), []
    for levels in (0, module._MIN_LEVELS):
        monkeypatch.setattr(module, '_MIN_LEVELS', levels)
        report = gp.quantize(net, given, tmp_path / 'net.tflite', depthwise='int8')
        errors.append(report.typical)
    assert errors[1] < 0.7 * errors[0]
    report = gp.quantize(net, given, tmp_path / 'net.tflite', depthwise='float')
    assert report.typical < errors[0]


@pytest.mark.parametrize('suffix', ['.onnx', '.tflite'])
def test_int8_files_take_pixels(suffix, converted, tmp_path):
    if not optional.usable(*(LITERT if suffix == '.tflite' else NEEDS[suffix])):
        pytest.skip('its packages are missing')
    pixels = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8)
    images = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    given = gp.ImageInput((0.5,) * 3, (0.25,) * 3, channels_last=True)
    path = tmp_path / f'net{suffix}'
    gp.quantize(converted, images.split(1), path, depthwise='int8', image_input=given)
    (got,) = FORMATS[suffix].read(path)([pixels[:1]])
    assert differences(got, converted(images[:1])).typical < 0.15


def test_litert_takes_batches_of_one_shape(converted, tmp_path):
    if not optional.usable(*LITERT):
        pytest.skip(f'needs {LITERT}')
    given = [torch.randn(4, 3, 32, 32), torch.randn(2, 3, 32, 32)]
    with pytest.raises(ValueError, match=r'batch 1 .* give batches of one image'):
        gp.quantize(converted, given, tmp_path / 'net.tflite')


def test_ncnn_has_no_tool_for_int8(converted, batches, tmp_path):
    with pytest.raises(ValueError, match=r'got .*net\.ncnn\.param.*ncnn2int8\) are C\+\+ programs'):
        gp.quantize(converted, batches, tmp_path / 'net.ncnn.param')
    assert not list(tmp_path.iterdir())
