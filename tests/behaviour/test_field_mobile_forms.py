"""Files that converters for mobile runtimes read: plain slices, permutations as convolutions."""

import copy
import os
import subprocess

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import ghost_plugin as gp
from ghost_plugin.deploy.permutations import with_constant_permutations
from ghost_plugin.layers.ghost import GhostModuleV2

# What Ghost layers are made of, and inputs (C, H, W).
LAYERS = {
    'ratio 3': lambda: gp.GhostModule(8, 20, ratio=3),
    'odd channels': lambda: gp.GhostConv2d(8, 21, 3),
    'ratio 1.5': lambda: gp.GhostConv2d(8, 12, 3, ratio=1.5),
    'shift': lambda: gp.GhostConv2d(8, 21, 1, cheap='shift'),
    'groups': lambda: gp.GhostConv2d(8, 21, 3, ratio=1.5, group_size=4),
    'attention': lambda: GhostModuleV2(8, 21, ratio=3.5),
    'backbone': lambda: gp.GhostNet(width=0.35, ratio=3, in_channels=8, out_indices=(1,)),
}
# Settings of Ghost convs whose permutation stays.
PERMUTED = {
    'point': {'kernel_size': 1},
    'dense': {'kernel_size': 3, 'padding': 1},
    'no bias': {'kernel_size': 1, 'bias': False},
    'some left out': {'kernel_size': 1, 'ratio': 3},
    'few ghosts': {'kernel_size': 1, 'ratio': 1.25},
    'no ghosts': {'kernel_size': 3, 'ratio': 1, 'stride': 2},
    'linear': {'kernel_size': 1, 'cheap': 'linear'},
    'several primaries': {'kernel_size': 1, 'group_size': 2},
    'all primaries': {'kernel_size': 1, 'ratio': 3, 'group_size': 'all'},
    'shift': {'kernel_size': 1, 'cheap': 'shift'},
    'circular': {'kernel_size': 1, 'padding_mode': 'circular'},
    'grouped': {'kernel_size': 1, 'groups': 2},
}


class Shortcuts(nn.Module):
    """Two Ghost convs with norms whose sum only one of them can be reordered for."""

    def __init__(self, norm=True, **settings):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        # Of its own permutation, which no other layer can take.
        self.ghosts = nn.ModuleList(
            gp.GhostConv2d(8, 20, permuted=True, **settings) for _ in range(3)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(20) if norm else nn.Identity() for _ in range(3))
        self.head = nn.Conv2d(20, 6, 3)
        for ghost in self.ghosts:
            ghost.order = torch.randperm(ghost.num_computed())[:20]

    def forward(self, x):
        x = self.stem(x).relu()
        maps = [norm(ghost(x)) for ghost, norm in zip(self.ghosts, self.norms, strict=True)]
        return self.head((maps[0] + maps[1] + maps[2]).relu())


@pytest.fixture(params=PERMUTED)
def net(request, randomise_norms):
    return randomise_norms(Shortcuts(**PERMUTED[request.param]))


@pytest.fixture
def x():
    return torch.rand(1, 3, 9, 11)


def operators(path):
    """Names of all operators of a TorchScript file."""
    graph = torch.jit.load(path).inlined_graph
    return {node.kind() for node in graph.nodes()}


def onnx_nodes(path):
    onnx = pytest.importorskip('onnx')
    graph = onnx.load(path).graph
    return [node.op_type for node in graph.node]


@pytest.mark.parametrize('kind', LAYERS)
def test_traced_layers_hold_plain_slices(kind):
    layer, x = LAYERS[kind]().eval(), torch.rand(2, 8, 12, 10)
    traced = torch.jit.trace(layer, x)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert 'aten::slice' in kinds
    assert not kinds & {'aten::narrow', 'aten::index_select', 'aten::index'}


@pytest.mark.parametrize('kind', ['odd channels', 'ratio 1.5', 'shift'])
def test_slices_take_images_without_a_batch(kind):
    layer, x = LAYERS[kind]().eval(), torch.rand(8, 12, 10)
    torch.testing.assert_close(layer(x), layer(x[None])[0])
    last = x[None].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last), layer(x[None]))


@pytest.mark.parametrize('fused', [True, False])
def test_files_hold_no_indexing_and_give_the_same(net, x, tmp_path, fused):
    path = tmp_path / 'net.pt'
    assert gp.export(net, x, path, fused=fused).max_rel_diff < 1e-5
    assert not operators(path) & {
        'aten::narrow',
        'aten::index_select',
        'aten::index',
        'aten::round',
    }
    path = tmp_path / 'net.onnx'
    pytest.importorskip('onnxruntime')
    assert gp.export(net, x, path, fused=fused, dynamic=False).max_rel_diff < 1e-5
    assert not {'Gather', 'Round', 'GatherND'} & set(onnx_nodes(path))


def test_on_request_permutations_are_indexing(net, x, tmp_path):
    path = tmp_path / 'net.pt'
    gp.export(net, x, path, portable=False)
    assert 'aten::index_select' in operators(path)
    assert 'aten::round' not in operators(path)
    path = tmp_path / 'net.onnx'
    pytest.importorskip('onnxruntime')
    gp.export(net, x, path, portable=False, dynamic=False)
    assert onnx_nodes(path).count('Gather') >= 2


def test_formats_of_one_runtime_hold_indexing(x, tmp_path, randomise_norms):
    net = randomise_norms(Shortcuts(kernel_size=1))
    path = tmp_path / 'net.pt2'
    gp.export(net, x, path, dynamic=False)
    targets = [str(node.target) for node in torch.export.load(path).graph.nodes]
    assert 'aten.index_select.default' in targets
    assert 'aten.round.default' not in targets
    openvino = pytest.importorskip('openvino')
    pytest.importorskip('onnx')
    path = tmp_path / 'net.xml'
    gp.export(net, x, path, dynamic=False)
    kinds = [op.get_type_name() for op in openvino.Core().read_model(str(path)).get_ops()]
    assert 'Gather' in kinds


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('kind', PERMUTED)
@pytest.mark.parametrize('fused', [True, False])
def test_constant_forms_are_exact(kind, dtype, fused, x, randomise_norms):
    net = randomise_norms(Shortcuts(**PERMUTED[kind])).to(dtype)
    net = gp.fuse(net) if fused else net
    for convolutions in (True, False):
        constant = with_constant_permutations(net, convolutions)
        torch.testing.assert_close(constant(x.to(dtype)), net(x.to(dtype)), rtol=1e-4, atol=1e-4)


def test_the_cheaper_of_two_forms_is_written():
    point = gp.GhostConv2d(8, 64, 1, permuted=True)  # 32 rows of 8 more, for 64 of 64
    dense = gp.GhostConv2d(64, 64, 3, permuted=True)  # 32 rows of 576 more
    none = gp.GhostConv2d(64, 64, 3, ratio=1, permuted=True)  # none more
    made = []
    for layer in (point, dense, none):
        layer.order = torch.randperm(64)
        made.append(with_constant_permutations(layer, convolutions=True))
    assert [layer.order is None for layer in made] == [True, False, True]
    masked = gp.GhostConv2d(8, 64, 1, permuted=True)
    prune.l1_unstructured(masked.primary_conv, 'weight', 3)
    assert with_constant_permutations(masked, convolutions=True).order is not None


def test_export_leaves_the_model_as_it_is(net, x, tmp_path):
    before, want = copy.deepcopy(net.state_dict()), net(x)
    for fused in (True, False):
        gp.export(net, x, tmp_path / 'net.pt', fused=fused)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(net(x), want)


def ncnn_outputs(path, x):
    """What ncnn makes of a file, converted by pnnx."""
    ncnn, pnnx = pytest.importorskip('ncnn'), pytest.importorskip('pnnx')
    shape = f'inputshape=[{",".join(map(str, x.shape))}]f32'
    program = os.path.join(os.path.dirname(pnnx.__file__), 'pnnx')
    command = [program, path.name, shape, 'fp16=0']
    subprocess.run(command, cwd=path.parent, capture_output=True, check=False)
    base = str(path.with_suffix('.ncnn'))
    with open(f'{base}.param') as file:
        unknown = [line.split()[0] for line in file if line.startswith(('torch.', 'Tensor.', 'F.'))]
    assert not unknown
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param(f'{base}.param')
    net.load_model(f'{base}.bin')
    extractor = net.create_extractor()
    extractor.input('in0', ncnn.Mat(x[0].numpy()))
    return torch.tensor(extractor.extract('out0')[1].numpy())


NETWORKS = {
    'ratio 3': lambda: gp.GhostNet(width=0.35, ratio=3, out_indices=(2,)),
    'odd': lambda: nn.Sequential(nn.Conv2d(3, 8, 3), gp.GhostConv2d(8, 21, 3)),
    'ratio 1.5': lambda: nn.Sequential(nn.Conv2d(3, 8, 3), gp.GhostConv2d(8, 12, 3, ratio=1.5)),
    **{
        f'permuted, {kind}': lambda kind=kind: Shortcuts(**PERMUTED[kind])
        for kind in PERMUTED
        if kind not in ('shift', 'circular')  # pnnx knows no such cheap operation
    },
}


@pytest.mark.parametrize('suffix', ['.pt', '.onnx'])
@pytest.mark.parametrize('kind', NETWORKS)
def test_ncnn_gives_the_same(kind, suffix, tmp_path, randomise_norms):
    pytest.importorskip('ncnn', reason='pnnx and ncnn are not installed')
    if suffix == '.onnx':
        pytest.importorskip('onnxruntime')
    net, x = randomise_norms(NETWORKS[kind]()), torch.rand(1, 3, 32, 48)
    path = tmp_path / f'net{suffix}'
    gp.export(net, x, path, dynamic=False)
    want = net(x)
    want = (want[-1] if isinstance(want, list | tuple) else want)[0].detach()
    got = ncnn_outputs(path, x)
    assert (got.view_as(want) - want).abs().max() < 1e-4 * want.abs().max()
