"""Files of ncnn, LiteRT and ExecuTorch: what they hold and refuse, what failures leave behind."""

import dataclasses
import importlib

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.export_formats import FORMATS
from ghost_plugin.layers.ghost import GhostModuleV2
from ghost_plugin.utils import optional

export_module = importlib.import_module('ghost_plugin.deploy.exporting')
NEEDS = {
    '.ncnn.param': ('pnnx', 'ncnn'),
    '.tflite': ('litert_torch', 'ai_edge_litert'),
    '.pte': ('executorch.exir', 'executorch.runtime'),
}
FIXED = [suffix for suffix in NEEDS if FORMATS[suffix].dynamic is False]
LAYERS = {
    'ratio 3': lambda: gp.GhostConv2d(8, 20, 3, ratio=3),
    'ratio 1.5': lambda: gp.GhostModule(8, 12, ratio=1.5),
    'odd channels': lambda: gp.GhostConv2d(8, 21, 3),
    'shift': lambda: gp.GhostConv2d(8, 21, 1, cheap='shift'),
    'linear': lambda: gp.GhostConv2d(8, 21, 1, cheap='linear'),
    'groups': lambda: gp.GhostConv2d(8, 22, 3, group_size=4),
    'all primaries': lambda: gp.GhostModule(8, 12, group_size='all'),
    'attention': lambda: GhostModuleV2(8, 16),
}


def need(suffix):
    if not optional.usable(*NEEDS.get(suffix, ())):
        pytest.skip(f'needs {NEEDS[suffix]}')


@pytest.fixture(params=NEEDS)
def suffix(request):
    need(request.param)
    return request.param


def test_the_plain_call_writes_a_converted_network(suffix, converted, tmp_path):
    x, path = torch.randn(1, 3, 24, 32), tmp_path / f'my-net.v1{suffix}'
    report = gp.export(converted, x, path)
    kind = FORMATS[suffix]
    assert (report.format, report.dynamic) == (kind.name, True)
    assert report.max_rel_diff <= 1e-4
    assert len(report.checked) > 1
    names = {path.name, *(path.with_suffix(other).name for other in kind.companions)}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert report.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    (got,) = kind.read(path)([x])
    torch.testing.assert_close(got, converted(x), rtol=1e-4, atol=1e-5)


def test_ncnn_takes_other_sizes_of_one_image(converted, tmp_path):
    need('.ncnn.param')
    path = tmp_path / 'net.ncnn.param'
    report = gp.export(converted, torch.randn(1, 3, 24, 32), path)
    assert report.free == {'input': {2: 'height', 3: 'width'}}
    run = FORMATS['.ncnn.param'].read(path)
    for size in ((24, 32), (41, 27)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(run([x])[0], converted(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='no axis for the batch; give a batch of 1, got 2'):
        run([torch.randn(2, 3, 24, 32)])
    with pytest.raises(ValueError, match='give an example with a batch of 1'):
        gp.export(converted, torch.randn(2, 3, 24, 32), path)
    assert gp.export(converted, x, path, dynamic=False).free == {'input': {}}


class SamePadding(nn.Module):
    """Computes its padding from the size of the image, as TensorFlow does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, x):
        pads = [(-(-size // 2) - 1) * 2 + 3 - size for size in (x.shape[3], x.shape[2])]
        sides = [part for pad in pads for part in (pad // 2, pad - pad // 2)]
        return self.conv(nn.functional.pad(x, sides))


def test_sizes_are_fixed_where_ncnn_needs_that(tmp_path):
    need('.ncnn.param')
    report = gp.export(SamePadding().eval(), torch.randn(1, 3, 24, 32), tmp_path / 'n.ncnn.param')
    assert report.free == {'input': {}}


@pytest.mark.parametrize('suffix', FIXED)
def test_fixed_sizes_are_checked(suffix, converted, tmp_path):
    need(suffix)
    path = tmp_path / f'net{suffix}'
    report = gp.export(converted, torch.randn(2, 3, 16, 16), path)
    assert report.free == {'input': {}}
    with pytest.raises(ValueError, match=r'\(1, 3, 16, 16\), but .* \(2, 3, 16, 16\); export aga'):
        FORMATS[suffix].read(path)([torch.randn(1, 3, 16, 16)])


@pytest.mark.parametrize('suffix', NEEDS)
def test_a_wish_for_dynamic_batches_is_refused(suffix, residual, tmp_path):
    with pytest.raises(ValueError, match='files have a fixed batch; leave dynamic='):
        gp.export(residual, torch.randn(1, 3, 16, 16), tmp_path / f'n{suffix}', dynamic='batch')


@pytest.mark.parametrize('name', LAYERS)
def test_layers(suffix, name, randomise_norms, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), LAYERS[name](), nn.Hardsigmoid())
    x = torch.randn(1, 3, 12, 16)
    report = gp.export(randomise_norms(net), x, tmp_path / f'net{suffix}')
    assert report.max_rel_diff <= 1e-4


@pytest.mark.parametrize('size', [(14, 14), (7, 14), (7, 9)])
def test_nearest_resizes_by_any_factor(suffix, size, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), GhostModuleV2(8, 16)).eval()
    report = gp.export(net, torch.randn(1, 3, *size), tmp_path / f'net{suffix}', dynamic=False)
    assert report.max_rel_diff <= 1e-4


class Many(nn.Module):
    """Takes two inputs that cannot be exchanged, returns more than ten outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5)

    def forward(self, a, b):
        x, y = self.first(a), self.second(b)
        maps = [y.relu(), *(x * (number + 1.5) for number in range(11))]
        return {'maps': maps[::-1], 'sum': x.mean((2, 3)) + y.mean((2, 3))}


def test_inputs_and_outputs_keep_their_order(suffix, tmp_path):
    pair = torch.randn(1, 3, 10, 12), torch.randn(1, 3, 14, 9)
    net, path = Many().eval(), tmp_path / f'net{suffix}'
    gp.export(net, pair, path)
    want = net(*pair)
    got = FORMATS[suffix].read(path)(pair)
    for one, other in zip(got, [*want['maps'], want['sum']], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Random(nn.Module):
    """Never returns the same twice, so no file agrees with it."""

    def forward(self, x):
        return x * torch.rand(1).item()


def stop(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize('cause', ['differs', 'interrupted'])
def test_a_failed_export_leaves_older_files(suffix, cause, residual, tmp_path, monkeypatch):
    path = tmp_path / f'net{suffix}'
    files = [path, *(path.with_suffix(other) for other in FORMATS[suffix].companions)]
    for file in files:
        file.write_text('older')
    net, error = Random().eval(), ValueError
    if cause == 'interrupted':
        net, error = residual, KeyboardInterrupt
        monkeypatch.setitem(FORMATS, suffix, dataclasses.replace(FORMATS[suffix], read=stop))
    with pytest.raises(error):
        gp.export(net, torch.randn(1, 3, 16, 16), path)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert {file.read_text() for file in files} == {'older'}


@pytest.mark.parametrize('suffix', NEEDS)
def test_a_missing_package_is_named_with_its_extra(suffix, residual, tmp_path, monkeypatch):
    monkeypatch.setattr(optional, 'failure', lambda name: 'ModuleNotFoundError')
    extra = FORMATS[suffix].name
    with pytest.raises(ImportError, match=rf"pip install 'ghost_plugin\[{extra}\]'"):
        gp.export(residual, torch.randn(1, 3, 16, 16), tmp_path / f'net{suffix}')
    assert not list(tmp_path.iterdir())


def test_suffixes_of_two_parts_are_told_from_others(residual, tmp_path):
    for name in ('net.param', '.ncnn.param', 'net.ncnn.bin'):
        with pytest.raises(ValueError, match=r'suffix selects the format: .*\.ncnn\.param \(ncnn'):
            gp.export(residual, torch.randn(1, 3, 16, 16), tmp_path / name)


def _family(name):
    return pytest.importorskip('timm').create_model(name, num_classes=10)


def _converted(name, **options):
    return gp.convert(_family(name).eval(), torch.randn(1, 3, 64, 64), **options)[0]


def _unet():
    models = pytest.importorskip('segmentation_models_pytorch')
    return models.Unet('tu-ghostnet_plugin_050', encoder_weights=None, classes=3)


NETWORKS = {
    **{
        name: lambda name=name: _family(name)
        for name in (
            'ghostnet_plugin_050',
            'ghostnet_plugin_v2_100',
            'ghostnet_plugin_v3_050',
            'ghostnet_plugin_gghost_032',
        )
    },
    **{
        f'{name} {options}': lambda name=name, options=options: _converted(name, **options)
        for name in ('resnet18', 'tf_efficientnet_lite0')
        for options in ({}, {'ratio': 3}, {'group_size': 4}, {'group_size': 'all'})
    },
    'unet': _unet,
}


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_parity_of_every_family_at_two_sizes(suffix, name, randomise_norms, tmp_path):
    net = randomise_norms(NETWORKS[name]())
    for size in ((64, 96), (128, 64)):
        report = gp.export(net, torch.randn(1, 3, *size), tmp_path / f'net{suffix}')
        assert report.max_rel_diff <= 1e-4
