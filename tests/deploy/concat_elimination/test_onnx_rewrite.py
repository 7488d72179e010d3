"""Halves of Ghost layers that stay apart in ONNX files."""

import pytest
import torch
from helpers.chains import JOINS, READS, chain, check_close, drawn
from torch import nn

import ghost_plugin as gp

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from ghost_plugin.deploy.concat_elimination.onnx_rewrite import keep_apart
from ghost_plugin.deploy.inference import of_onnx

X = torch.randn(2, 3, 16, 12)


def joins(model):
    """Concatenations of maps."""
    return sum(
        node.op_type == 'Concat' and node.attribute[0].i in (1, -3) for node in model.graph.node
    )


def parted(model, x, path, dynamic=False):
    """The model's ONNX file before, the same with halves apart, and how many joins went."""
    gp.export(model, x, path, exporter='trace', dynamic=dynamic)
    before = onnx.load(path)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    gone = keep_apart(after, [x.shape])
    onnx.checker.check_model(after, full_check=True)
    onnx.save(after, path)
    return before, after, gone


def check_same(model, x, path):
    with torch.no_grad():
        check_close(of_onnx(path, 1)([x]), model(x))


@pytest.mark.parametrize('name', ['GhostNet', 'GhostNetV2', 'GhostNetV3'])
@pytest.mark.parametrize('dynamic', [True, False])
def test_backbones_join_nothing_but_means_and_what_they_return(
    name, dynamic, randomise_norms, tmp_path
):
    model = randomise_norms(getattr(gp, name)(0.5, out_indices=(2, 4))).eval()
    x = torch.randn(1, 3, 64, 64)
    before, after, gone = parted(model, x, tmp_path / 'net.onnx', dynamic)
    means = sum(node.op_type == 'ReduceMean' for node in before.graph.node)
    assert joins(before) == 32 and gone == 30
    assert joins(after) == means + len(model.out_indices)
    for size in ((1, 3, 64, 64), (3, 3, 97, 131)) if dynamic else ((1, 3, 64, 64),):
        check_same(model, torch.randn(size), tmp_path / 'net.onnx')


def test_small_maps_are_joined_for_the_sizes_that_are_given(tmp_path):
    gp.export(gp.GhostNet(0.5).eval(), torch.randn(1, 3, 64, 64), tmp_path / 'net.onnx')
    gone = []
    for batch, side in ((1, 32), (1, 64), (4, 64), (4, 128)):
        model = onnx.load(tmp_path / 'net.onnx')
        gone.append(keep_apart(model, [(batch, 3, side, side)], least=20_000))
        onnx.checker.check_model(model, full_check=True)
    assert gone == sorted(gone) and gone[0] == 0 < gone[1] < gone[-1]


@pytest.mark.parametrize('ratio', [2, 4])
def test_a_converted_network_reads_halves_of_any_size(ratio, residual, tmp_path):
    x = torch.randn(1, 3, 16, 16)
    model, _ = gp.convert(residual, x, ratio=ratio, exclude=['stem'], keep_last=False)
    _, _, gone = parted(model, x, tmp_path / 'net.onnx', dynamic=True)
    assert gone >= 1
    check_same(model, torch.randn(3, 3, 20, 33), tmp_path / 'net.onnx')


@pytest.mark.parametrize('name', READS)
def test_what_reads_halves_gives_the_same(name, tmp_path):
    model = chain(nn.ReLU(), READS[name]())
    _, _, gone = parted(model, X, tmp_path / 'net.onnx')
    assert gone >= 1
    check_same(model, X, tmp_path / 'net.onnx')


@pytest.mark.parametrize('name', JOINS)
def test_what_reads_the_whole_gets_it(name, tmp_path):
    model = chain(nn.ReLU(), JOINS[name]())
    parted(model, X, tmp_path / 'net.onnx')
    check_same(model, X, tmp_path / 'net.onnx')


@pytest.mark.parametrize('seed', range(12))
def test_any_chain_gives_the_same(seed, tmp_path):
    model = drawn(seed)
    parted(model, X, tmp_path / 'net.onnx')
    check_same(model, X, tmp_path / 'net.onnx')


def test_branches_of_a_graph_are_left_alone():
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
    assert keep_apart(model, [(1, 2, 4, 4), ()]) == 0 and model.SerializeToString() == before


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_export_writes_them_apart(suffix, tmp_path):
    if suffix == '.xml':
        pytest.importorskip('openvino')
    model = gp.GhostNet(0.5, out_indices=(3,)).eval()
    x = torch.randn(1, 3, 64, 64)
    report = gp.export(model, x, tmp_path / f'net{suffix}', split=True)
    assert report.max_rel_diff < 1e-4 and len(report.checked) == 6
    assert {path.suffix for path in tmp_path.iterdir()} <= {suffix, '.bin'}


def test_where_nothing_can_stay_apart_it_is_said(residual, tmp_path):
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match='no halves of Ghost layers stay apart here'):
        gp.export(residual, x, tmp_path / 'net.onnx', split=True)
    with pytest.raises(ValueError, match=r"split .*works for \['.onnx', '.xml'\], got"):
        gp.export(residual, x, tmp_path / 'net.pt', split=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r'onnxruntime-split does not work here: .*no halves'):
        gp.optimize(residual, x, 'onnxruntime-split', rounds=1)
    with pytest.raises(ValueError, match='backend must be one of'):
        gp.deploy.ready('onnxruntime-split')
