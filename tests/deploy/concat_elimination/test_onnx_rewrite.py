"""Elimination of concatenations in ONNX files."""

import pytest
import torch
from helpers.chains import CONCATS, READS, chain, check_close, drawn
from torch import nn

import ghost_plugin as gp

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from ghost_plugin.deploy.concat_elimination.onnx_rewrite import eliminate_concats, split_file
from ghost_plugin.deploy.inference import onnxruntime_fn

X = torch.linspace(-2, 2, 1152).view(2, 3, 16, 12)


def concats(model):
    """Count concatenations of channels."""
    return sum(
        node.op_type == 'Concat' and node.attribute[0].i in (1, -3) for node in model.graph.node
    )


def split_model(model, x, path, dynamic=False):
    """Return the ONNX model before and after, and the number of eliminated concatenations."""
    gp.export(model, x, path, exporter='trace', dynamic=dynamic)
    before = onnx.load(path)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    gone = eliminate_concats(after, [x.shape])
    onnx.checker.check_model(after, full_check=True)
    onnx.save(after, path)
    return before, after, gone


def check_same(model, x, path):
    with torch.no_grad():
        check_close(onnxruntime_fn(path)([x]), model(x))


@pytest.mark.parametrize(
    ('name', 'dynamic'),
    [
        ('GhostNet', True),
        ('GhostNetV2', False),
        pytest.param('GhostNet', False, marks=pytest.mark.slow),
        pytest.param('GhostNetV2', True, marks=pytest.mark.slow),
        pytest.param('GhostNetV3', True, marks=pytest.mark.slow),
        pytest.param('GhostNetV3', False, marks=pytest.mark.slow),
    ],
)
def test_backbones_concatenate_only_means_and_outputs(name, dynamic, randomise_norms, tmp_path):
    model = randomise_norms(getattr(gp, name)(0.5, out_indices=(2, 4))).eval()
    x = torch.randn(1, 3, 64, 64)
    before, after, gone = split_model(model, x, tmp_path / 'net.onnx', dynamic)
    means = sum(node.op_type == 'ReduceMean' for node in before.graph.node)
    assert concats(before) == 32 and gone == 30
    assert concats(after) == means + len(model.out_indices)
    for size in ((1, 3, 64, 64), (3, 3, 97, 131)) if dynamic else ((1, 3, 64, 64),):
        check_same(model, torch.randn(size), tmp_path / 'net.onnx')


def test_small_values_stay_concatenated(tmp_path):
    gp.export(gp.GhostNet(0.5).eval(), torch.randn(1, 3, 64, 64), tmp_path / 'net.onnx')
    gone = []
    for batch, side in ((1, 32), (1, 64), (4, 64), (4, 128)):
        model = onnx.load(tmp_path / 'net.onnx')
        gone.append(eliminate_concats(model, [(batch, 3, side, side)], min_elements=20_000))
        onnx.checker.check_model(model, full_check=True)
    assert gone == sorted(gone) and gone[0] == 0 < gone[1] < gone[-1]


@pytest.mark.parametrize('ratio', [2, 4])
def test_a_converted_network_of_any_size(ratio, residual, tmp_path):
    x = torch.randn(1, 3, 16, 16)
    model, _ = gp.convert(residual, x, ratio=ratio, exclude=['stem'], keep_last=False)
    _, _, gone = split_model(model, x, tmp_path / 'net.onnx', dynamic=True)
    assert gone >= 1
    check_same(model, torch.randn(3, 3, 20, 33), tmp_path / 'net.onnx')


@pytest.mark.parametrize('group_size', [4, 'all'])
def test_ghosts_of_several_primary_channels(group_size, randomise_norms, tmp_path):
    options = {'ratio': 1.5, 'group_size': group_size, 'out_indices': (1, 2)}
    model = randomise_norms(gp.GhostNet(0.5, **options)).eval()
    x = torch.randn(1, 3, 64, 64)
    _, _, gone = split_model(model, x, tmp_path / 'net.onnx', dynamic=True)
    assert gone >= 4
    check_same(model, torch.randn(2, 3, 97, 50), tmp_path / 'net.onnx')


@pytest.mark.parametrize('name', READS)
def test_readers_of_parts(name, tmp_path):
    model = chain(nn.ReLU(), READS[name]())
    _, _, gone = split_model(model, X, tmp_path / 'net.onnx')
    assert gone >= 1
    check_same(model, X, tmp_path / 'net.onnx')


@pytest.mark.parametrize('name', CONCATS)
def test_readers_of_the_whole(name, tmp_path):
    model = chain(nn.ReLU(), CONCATS[name]())
    split_model(model, X, tmp_path / 'net.onnx')
    check_same(model, X, tmp_path / 'net.onnx')


@pytest.mark.parametrize('seed', range(6))
def test_random_chains(seed, tmp_path):
    model = drawn(seed)
    split_model(model, X, tmp_path / 'net.onnx')
    check_same(model, X, tmp_path / 'net.onnx')


def test_graphs_with_branches_stay():
    helper = onnx.helper
    branch = helper.make_graph(
        [helper.make_node('Identity', ['pair'], ['y'])], 'branch', [],
        [helper.make_tensor_value_info('y', 1, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node('Concat', ['x', 'x'], ['pair'], axis=1),
        helper.make_node('If', ['flag'], ['out'], then_branch=branch, else_branch=branch),
    ]
    x = helper.make_tensor_value_info('x', 1, [1, 2, 4, 4])
    flag = helper.make_tensor_value_info('flag', 9, [])
    out = helper.make_tensor_value_info('out', 1, None)
    model = helper.make_model(helper.make_graph(nodes, 'net', [x, flag], [out]))
    before = model.SerializeToString()
    assert eliminate_concats(model, [(1, 2, 4, 4), ()]) == 0 and model.SerializeToString() == before


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_export_with_split_concat(suffix, tmp_path):
    if suffix == '.xml':
        pytest.importorskip('openvino')
    model = gp.GhostNet(0.5, out_indices=(3,)).eval()
    x = torch.randn(16, 3, 64, 64)
    report = gp.export(model, x, tmp_path / f'net{suffix}', split_concat=True)
    assert report.max_rel_diff < 1e-4 and len(report.checked) == 6
    assert {path.suffix for path in tmp_path.iterdir()} <= {suffix, '.bin'}


def test_auto_splits_only_large_concatenations(residual, tmp_path):
    x = torch.randn(1, 3, 16, 16)
    gp.export(residual, x, tmp_path / 'net.onnx', split_concat='auto')
    with pytest.raises(ValueError, match=r'no concatenation of a Ghost layer .* 120,000 elements'):
        gp.export(residual, x, tmp_path / 'net.onnx', split_concat=True)
    split_file(tmp_path / 'net.onnx', tmp_path / 'same.onnx', [x.shape], required=False)
    assert onnx.load(tmp_path / 'same.onnx') == onnx.load(tmp_path / 'net.onnx')


def test_where_split_concat_does_not_apply_it_is_refused(residual, tmp_path):
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"split_concat .*works for \['.onnx', '.xml'\], got"):
        gp.export(residual, x, tmp_path / 'net.pt', split_concat=True)
    with (
        pytest.warns(FutureWarning, match='use split_concat'),
        pytest.raises(ValueError, match='no concatenation'),
    ):
        gp.export(residual, x, tmp_path / 'net.onnx', split=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r'onnxruntime does not work here: .*no concatenation'):
        gp.optimize(residual, x, 'onnxruntime', split_concat=True, rounds=1)
