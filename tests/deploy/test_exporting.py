import dataclasses
import errno
import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.comparison import differences
from ghost_plugin.deploy.export_formats import FORMATS
from ghost_plugin.deploy.inference import quiet
from ghost_plugin.utils import optional

export_module = importlib.import_module('ghost_plugin.deploy.exporting')
NEEDS = {'.onnx': ('onnx', 'onnxruntime'), '.xml': ('onnx', 'openvino')}
CASES = [
    (suffix, exporter)
    for suffix, kind in FORMATS.items()
    for exporter in kind.exporters
    if kind.dynamic is True
]  # fmt: skip
SIZES = [(160, 160), (224, 224), (256, 320)]


def need(suffix, exporter='trace'):
    names = NEEDS.get(suffix, ()) + (('onnxscript',) if exporter == 'dynamo' else ())
    if not optional.usable(*names):
        pytest.skip(f'needs {names}')
    if exporter == 'dynamo' and torch.__version__ < (2, 6):
        pytest.skip('needs torch 2.6')


@pytest.mark.parametrize(('suffix', 'exporter'), CASES)
def test_every_format_takes_a_converted_network_at_any_batch_and_size(
    suffix, exporter, converted, tmp_path
):
    need(suffix, exporter)
    path = tmp_path / f'net{suffix}'
    report = gp.export(converted, torch.randn(1, 3, 32, 40), path, exporter=exporter)
    assert report.exporter == exporter
    assert report.max_rel_diff <= 1e-4
    assert len({shape[2:] for shape in report.checked}) > 3
    assert {shape[0] for shape in report.checked} == {1, 2, 3}
    files = sorted(tmp_path.iterdir())
    assert report.size == sum(file.stat().st_size for file in files)
    assert [file.suffix for file in files] == sorted([suffix, *FORMATS[suffix].companions])
    x = torch.randn(4, 3, 50, 34)
    (got,) = FORMATS[suffix].read(path)([x])
    torch.testing.assert_close(got, converted(x), rtol=1e-4, atol=1e-5)
    json.dumps(report.as_dict())


class Timed(nn.Module):
    """Takes a picture and a number for each."""

    def __init__(self):
        super().__init__()
        self.conv, self.embed = nn.Conv2d(3, 4, 3, padding=1), nn.Embedding(10, 4)

    def forward(self, x, time):
        shift = time.reshape(-1, 1) if time.is_floating_point() else self.embed(time)
        return self.conv(x) + shift[:, :, None, None]


@pytest.mark.parametrize('dynamic', [True, 'batch', False])
@pytest.mark.parametrize('time', [[0.5], [[0.5]], [3]])
@pytest.mark.parametrize(('suffix', 'exporter'), [('.pt', 'trace'), ('.onnx', 'trace')])
def test_a_number_for_each_picture_is_an_input(suffix, exporter, time, dynamic, tmp_path):
    need(suffix, exporter)
    net, x = Timed().eval(), torch.randn(1, 3, 8, 8)
    report = gp.export(net, (x, torch.tensor(time)), tmp_path / f'net{suffix}', dynamic=dynamic)
    assert report.exporter == exporter
    batch = 3 if dynamic else 1
    pair = torch.randn(batch, 3, 8, 8), torch.tensor(time * batch).cumsum(0)
    (got,) = FORMATS[suffix].read(tmp_path / f'net{suffix}')(pair)
    torch.testing.assert_close(got, net(*pair), rtol=1e-4, atol=1e-5)


class Boxes(nn.Module):
    """Takes pictures and boxes, whose first number tells the picture."""

    def forward(self, x, boxes):
        assert ((boxes[:, 0] >= 0) & (boxes[:, 0] < len(x))).all()
        return x[boxes[:, 0].long()].mean((2, 3)) * boxes[:, 1:4]


def test_indices_are_tried_as_they_are(tmp_path):
    pair = torch.randn(2, 3, 8, 8), torch.tensor([[0, 1.0, 2, 3, 4], [1, 5, 6, 7, 8]])
    report = gp.export(Boxes().eval(), pair, tmp_path / 'net.pt')
    assert report.refused == ()
    assert len(report.checked) == 6


class Scaled(nn.Module):
    """Takes a picture and a larger one, gives maps of two sizes."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, padding=1)
        self.coarse = nn.Conv2d(3, 3, 3, 2, padding=1)

    def forward(self, small, large):
        maps = self.coarse(large.sigmoid())
        return self.fine(small.relu()), maps, maps.sigmoid().sum(1)


def test_pictures_and_maps_of_several_sizes_share_no_memory(tmp_path, capfd):
    need('.onnx')
    pair = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 24, 32)
    gp.export_onnx(Scaled().eval(), pair, tmp_path / 'net.onnx', exporter='trace')
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    session.run(None, {f'input_{i}': x.numpy() for i, x in enumerate(pair)})
    pictures = [*session.get_inputs(), *session.get_outputs()[:2]]
    assert len({node.shape[2] for node in pictures}) == 4
    assert 'Shape mismatch' not in capfd.readouterr().err


class Random(nn.Module):
    """Never gives the same twice, so no file can agree with it."""

    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize('suffix', ['.onnx', '.xml', '.pt'])
def test_what_differs_is_not_written_and_an_older_file_stays(suffix, tmp_path):
    need(suffix)
    path = tmp_path / f'net{suffix}'
    path.write_text('older')
    with pytest.raises(ValueError, match=r'nothing was written.* differ by .* allowed is 1\.0e-02'):
        gp.export(Random().eval(), torch.randn(1, 3, 8, 8), path, exporter='trace')
    assert path.read_text() == 'older'
    assert list(tmp_path.iterdir()) == [path]


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 2)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_networks_of_one_size_are_told_what_to_do(tmp_path):
    need('.onnx')
    example = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="give dynamic='batch'"):
        gp.export_onnx(Fixed().eval(), example, tmp_path / 'net.onnx')
    report = gp.export_onnx(Fixed().eval(), example, tmp_path / 'net.onnx', dynamic='batch')
    assert [shape[0] for shape in report.checked] == [1, 1, 3]


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'path': 'net.foo'}, r'suffix selects the format: \.onnx'),
        ({'dynamic': 'size'}, "dynamic must be True, False or 'batch', got 'size'"),
        ({'opset': 10}, 'opset must be 11 or newer, got 10'),
        ({'exporter': 'magic'}, r"must be one of \['auto', 'trace', 'dynamo'\], got 'magic'"),
    ],
)
def test_wrong_options_are_named(options, said, residual, tmp_path):
    path = tmp_path / options.pop('path', 'net.onnx')
    with pytest.raises(ValueError, match=said):
        gp.export(residual, torch.randn(1, 3, 16, 16), path, **options)
    with pytest.raises(ValueError, match='training mode'):
        gp.export(residual.train(), torch.randn(1, 3, 16, 16), tmp_path / 'net.onnx')


def test_places_that_take_no_file_are_refused_first(residual, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, 'fuse', lambda model: pytest.fail('has begun'))
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'net.onnx').mkdir()
    (tmp_path / 'net.bin').mkdir()
    for name, error in (
        ('file/net.onnx', NotADirectoryError),
        ('net.onnx', IsADirectoryError),
        ('net.xml', IsADirectoryError),
    ):
        with pytest.raises(error, match=r'is no folder|is a folder; give the name of a file'):
            gp.export(residual, torch.randn(1, 3, 16, 16), tmp_path / name)
    assert (tmp_path / 'file').read_text() == 'mine'


def test_a_full_disk_is_no_fault_of_an_exporter(residual, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    kind = dataclasses.replace(FORMATS['.pt'], exporters={'trace': full})
    monkeypatch.setitem(FORMATS, '.pt', kind)
    with pytest.raises(OSError, match='No space left'):
        gp.export(residual, torch.randn(1, 3, 16, 16), tmp_path / 'net.pt')
    assert not list(tmp_path.iterdir())


def test_an_opset_that_none_writes_is_refused(residual, tmp_path):
    need('.onnx', 'dynamo')
    said = 'Unsupported onnx_opset_version: 99; dynamo: .* writes opset 18, not 99'
    with pytest.raises(ValueError, match=said):
        gp.export(residual, torch.randn(1, 3, 16, 16), tmp_path / 'net.onnx', opset=99)
    assert not list(tmp_path.iterdir())


class Grid(nn.Module):
    """Keeps a table for the last size."""

    table = torch.ones(0, 0)

    def forward(self, x):
        if self.table.shape[-2:] != x.shape[-2:]:
            self.table = torch.ones(x.shape[-2:])
        return x * self.table


def test_what_fails_is_said_once(tmp_path, capfd):
    need('.onnx')
    with pytest.raises(ValueError, match='broadcast an axis'):  # by the runtime
        gp.export(Grid().eval(), torch.randn(1, 3, 16, 16), tmp_path / 'net.onnx', exporter='trace')
    assert capfd.readouterr().err == ''
    with quiet():
        assert not logging.getLogger('torch').isEnabledFor(logging.ERROR)  # exporters raise, too


def test_the_tool_writes_and_says_what_is_wrong(tmp_path):
    need('.onnx')
    pytest.importorskip('timm')
    tool = [sys.executable, str(Path(__file__).parents[2] / 'tools' / 'export.py')]
    out = tmp_path / 'net.onnx'
    options = ['timm:ghostnet_plugin_050', '--size', '64', '--num-classes', '5', '--json']
    done = subprocess.run([*tool, *options, '-o', out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['max_rel_diff'] <= 1e-4
    wrong = subprocess.run([*tool, *options, '-o', 'net.foo'], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr.count('\n')) == (2, 1)


def _family(name):
    import timm

    return timm.create_model(name)


def _converted(build):
    return gp.convert(build().eval(), torch.randn(1, 3, 64, 64))[0]


def _networks():
    """Builders by name: every registered family, two conversions."""
    if not optional.usable('timm'):
        return {}
    from ghost_plugin.integrations.timm.ghostnet_plugin import VARIANTS

    nets = {name: lambda name=name: _family(name) for name in VARIANTS}
    for name in ('tf_efficientnet_lite0', 'resnet50'):
        nets[f'{name}-converted'] = lambda name=name: _converted(lambda: _family(name))
    return nets


def _check_parity(net, example, suffix, path):
    need(suffix)
    gp.export(net, example, path)
    run = FORMATS[suffix].read(path)
    for size in SIZES:
        for batch in (1, 3):
            x = torch.randn(batch, 3, *size)
            with torch.no_grad():
                want = net(x)
            assert differences(run([x]), want).relative <= 1e-4, (size, batch)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
@pytest.mark.parametrize('name', _networks())
def test_parity_of_every_family(name, suffix, randomise_norms, tmp_path):
    net = randomise_norms(_networks()[name]())
    _check_parity(net, torch.randn(1, 3, 160, 160), suffix, tmp_path / f'net{suffix}')


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_parity_of_a_detector(suffix, randomise_norms, tmp_path):
    pytest.importorskip('mmdet')
    from ghost_plugin.cli import model_loading

    net = model_loading.load('configs/detection/retinanet_ghostnetv2-100_fpn_1x_coco.py').model
    net = randomise_norms(net)
    _check_parity(net, torch.randn(1, 3, 160, 160), suffix, tmp_path / f'net{suffix}')


@pytest.mark.parametrize('exporter', ['trace', 'dynamo'])
@pytest.mark.parametrize('group_size', [4, 'all'])
def test_ghosts_of_several_primary_channels_are_exported(group_size, exporter, tmp_path):
    need('.onnx', exporter)
    model = nn.Sequential(
        gp.GhostConv2d(3, 30, 3, ratio=1.5, group_size=group_size, permuted=True),
        nn.BatchNorm2d(30), nn.ReLU(), gp.GhostModule(30, 16, group_size=group_size),
    ).eval()  # fmt: skip
    model[0].order = torch.randperm(model[0].num_computed())[:30]
    x, path = torch.randn(1, 3, 20, 16), tmp_path / 'net.onnx'
    report = gp.export(model, x, path, exporter=exporter)
    assert report.max_rel_diff <= 1e-4
    (got,) = FORMATS['.onnx'].read(path)([x])
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
    program = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(program(x), model(x))
