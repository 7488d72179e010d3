"""Files that take images of 8 bits and normalize them inside, exact at the borders too."""

import importlib

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.export_formats import FORMATS
from ghost_plugin.utils import optional

NEEDS = {
    '.onnx': ('onnx', 'onnxruntime'),
    '.xml': ('onnx', 'openvino'),
    '.pt': (),
    '.pt2': (),
    '.ncnn.param': ('pnnx', 'ncnn'),
    '.tflite': ('litert_torch', 'ai_edge_litert'),
    '.pte': ('executorch.exir', 'executorch.runtime'),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalized(pixels, channels_last, reversed_channels):
    """The input of the model, as transforms make it."""
    x = pixels.permute(0, 3, 1, 2) if channels_last else pixels
    x = x.flip(1) if reversed_channels else x
    return (x.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize('suffix', NEEDS)
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('reversed_channels', [False, True])
def test_a_file_normalizes_pixels(suffix, channels_last, reversed_channels, converted, tmp_path):
    if not optional.usable(*NEEDS[suffix]):
        pytest.skip(f'needs {NEEDS[suffix]}')
    path, kind = tmp_path / f'net{suffix}', FORMATS[suffix]
    given = gp.ImageInput(MEAN, STD, channels_last, reversed_channels)
    example = torch.randn(1, 3, 24, 32)
    if suffix == '.ncnn.param' and channels_last:
        with pytest.raises(ValueError, match=r'takes channels first, which Mat\.from_pixels makes'):
            gp.export(converted, example, path, image_input=given)
        return
    report = gp.export(converted, example, path, image_input=given)
    assert report.max_rel_diff <= 1e-4
    shape = (1, 24, 32, 3) if channels_last else (1, 3, 24, 32)
    assert report.checked[0] == shape
    if kind.dynamic is True:
        first = 1 if channels_last else 2
        assert report.free == {'input': {0: 'batch', first: 'height', first + 1: 'width'}}
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    (got,) = kind.read(path)([pixels.to(kind.pixels)])
    want = converted(normalized(pixels, channels_last, reversed_channels))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('channels_last', [False, True])
def test_pixels_of_normalized_images(channels_last):
    pixels = torch.randint(256, (2, 5, 7, 3) if channels_last else (2, 3, 5, 7), dtype=torch.uint8)
    given = gp.ImageInput(MEAN, STD, channels_last, reversed_channels=True)
    assert torch.equal(given.pixels(normalized(pixels, channels_last, True)), pixels)


class Pair(nn.Module):
    def forward(self, left, right):
        return left + right


@pytest.mark.parametrize(
    ('net', 'inputs', 'channels', 'said'),
    [
        (Pair(), (torch.ones(1, 3, 4, 4),) * 2, 3, 'one input .* have the shapes'),
        (nn.ReLU(), torch.ones(1, 3, 4, 4), 1, r'one input \(N, 1, H, W\)'),
        (nn.ReLU(), torch.ones(1, 3), 3, r'shapes \[\(1, 3\)\]'),
    ],
)
def test_other_inputs_are_refused(net, inputs, channels, said, tmp_path):
    given = gp.ImageInput(MEAN[:channels], STD[:channels])
    with pytest.raises(ValueError, match=said):
        gp.export(net.eval(), inputs, tmp_path / 'net.pt2', image_input=given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('values', [((), ()), (MEAN, (1, 1)), (MEAN, (1, 0, 1))])
def test_wrong_means_are_refused(values):
    with pytest.raises(ValueError, match='one number per channel each, std above 0'):
        gp.ImageInput(*values)


class Constant(nn.Module):
    """Returns what it was traced with."""

    def forward(self, x):
        return x * 0 + float(x.mean())


def test_constants_of_a_trace_are_found(tmp_path):
    with pytest.raises(ValueError, match='outputs differ by'):
        gp.export(
            Constant().eval(),
            torch.randn(1, 3, 8, 8),
            tmp_path / 'net.pt',
            dynamic=False,
            image_input=gp.ImageInput(MEAN, STD),
        )


def test_a_detector_takes_pixels(tmp_path):
    for package in ('mmdet', 'onnxruntime', 'onnx'):
        pytest.importorskip(package)
    load = importlib.import_module('ghost_plugin.cli.model_loading').load
    source = load('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py').adjusted((64, 96))
    given = gp.ImageInput(source.preprocessing.mean, source.preprocessing.std, True, True)
    report = gp.export(
        source.model, source.example(), tmp_path / 'd.onnx', dynamic='batch', image_input=given
    )
    assert report.checked[0] == (1, 64, 96, 3)
    assert report.max_rel_diff <= 1e-4
