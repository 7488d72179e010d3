"""Triton kernels against the layers that they stand for: on a GPU, else by Triton's interpreter."""

import copy
import time

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy import optimizing
from ghost_plugin.deploy.backends import BACKENDS

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
pytest.importorskip('triton')
if not hasattr(torch.library, 'triton_op'):
    pytest.skip('needs torch 2.6', allow_module_level=True)
from ghost_plugin.deploy.kernels import triton_modules


def lively(model, largest=2.0):
    """Norms with statistics and weights that are not their first ones."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, largest)
            norm.bias.data.normal_()
    return model.eval()


def fused(model, x=None, largest=2.0):
    model = gp.fuse(lively(model, largest), x).to(DEVICE, memory_format=torch.channels_last)
    return model.requires_grad_(False)


def assert_same(layer, x, number):
    made = list(triton_modules.candidates(layer))
    assert len(made) == number
    want = layer(x)
    for form in made:
        got = form.to(DEVICE)(x)
        assert got.is_contiguous(memory_format=torch.channels_last)
        # What cuDNN and the kernels give differs by more than the interpreter's results.
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(
    ('channels', 'size', 'options'),
    [
        ((16, 16), (17, 20), {}),  # two tiles and a bit, each way
        ((24, 40), (7, 7), {'relu': False}),  # a whole map, 20 primary maps
        ((20, 46), (14, 16), {'ratio': 3}),  # two ghosts each, cut
        ((16, 48), (20, 35), {'dw_size': 5}),  # a wider halo
        ((16, 24), (20, 18), {'dw_dilation': 2}),
        ((33, 30), (9, 9), {'ratio': 4, 'dw_size': 1}),  # odd channels, no border
        ((16, 21), (5, 3), {}),
        ((8, 24), (1, 1), {}),
    ],
)
def test_ghost_modules(channels, size, options):
    layer = fused(gp.GhostModule(*channels, **options))
    assert_same(layer, torch.randn(2, channels[0], *size, device=DEVICE), 2)


def test_primary_convs_of_other_kernels_are_left_to_the_library():
    layer = fused(gp.GhostModule(6, 20, kernel_size=3, stride=2))
    assert_same(layer, torch.randn(2, 6, 15, 18, device=DEVICE), 1)


@pytest.mark.parametrize(
    ('kernel', 'options'),
    [
        (3, {}),
        (3, {'stride': 2}),
        (5, {'stride': 2}),
        ((1, 5), {}),
        ((5, 1), {}),
        (3, {'dilation': 2}),
    ],
)
def test_depthwise_convs(kernel, options):
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(size // 2 * options.get('dilation', 1) for size in sizes)
    conv = nn.Conv2d(12, 12, kernel, padding=padding, groups=12, **options).to(DEVICE)
    assert_same(conv.requires_grad_(False), torch.randn(2, 12, 13, 16, device=DEVICE), 1)


def test_folded_ghost_convs_with_a_shift_of_the_primary_maps_and_an_order():
    net = nn.Sequential(
        nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.AvgPool2d(2), nn.Conv2d(48, 22, 1),
    )  # fmt: skip
    x = torch.randn(2, 16, 18, 18)
    net = gp.convert(lively(net), x, keep_first=False, keep_last=False)[0]
    net, x = fused(net), x.to(DEVICE)
    assert net[0].shift is not None and net[6].order is not None
    for layer, number in zip(net, (2, 0, 0, 1, 0, 0, 2), strict=True):
        assert_same(layer, x, number)
        x = layer(x)


@pytest.mark.parametrize('permuted', [False, True])
def test_primary_maps_without_ghosts(permuted):
    layer = fused(nn.Sequential(gp.GhostConv2d(8, 22, 1, ratio=1.25, permuted=permuted)))[0]
    assert layer.num_ghosted == 4
    assert_same(layer, torch.randn(2, 8, 17, 5, device=DEVICE), 2)


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(8, 8, 3, groups=8),  # shrinks the map
        nn.Conv2d(8, 8, 4, padding=2, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode='reflect'),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        gp.GhostModule(8, 16, act_layer=nn.Hardswish),
        gp.GhostModule(8, 16, cheap='shift'),
        gp.GhostModule(8, 16, ratio=1),
        gp.GhostModule(8, 16, group_size=2),
        gp.GhostConv2d(8, 16, 1, group_size='all'),
        gp.GhostConv2d(8, 16, 3, padding=1, padding_mode='circular'),
        nn.ReLU(),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_know_is_left(layer):
    assert not list(triton_modules.candidates(gp.fuse(layer.eval())))


def test_a_primary_conv_that_pads_as_it_runs_is_left():
    same = pytest.importorskip('timm.layers').Conv2dSame
    assert not list(triton_modules.candidates(gp.GhostConv2d(8, 16, 3, stride=2, conv_layer=same)))


@pytest.fixture
def always_last(monkeypatch):
    """The last form of each layer, as nothing can be timed on the CPU."""
    monkeypatch.setattr(triton_modules, '_fastest', lambda layers, x: layers[-1].to(x.device))


@pytest.mark.parametrize('family', [gp.GhostNet, gp.GhostNetV2, gp.GhostNetV3])
def test_whole_networks(family, always_last):
    # With larger norms the outputs grow to 1e6, and float32 itself loses a tenth.
    net = fused(family(0.35, out_indices=(1, 4)), largest=1.0)
    x = torch.randn(1, 3, 40, 56, device=DEVICE).contiguous(memory_format=torch.channels_last)
    quick = copy.deepcopy(net)
    changed = triton_modules.accelerate(quick, x)
    assert 'blocks.0.0.ghost1' in changed and 'blocks.1.0.conv_dw' in changed
    strips = [name for name in changed if 'short_conv' in name]
    assert bool(strips) == (family is not gp.GhostNet)
    assert not any(name.endswith(('primary_conv.0', 'cheap_operation.0')) for name in changed)
    for got, want in zip(quick(x), net(x), strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_the_fastest_form_is_taken(monkeypatch):
    seconds = {'a': 0.004, 'b': 0.001, 'c': 0.002}
    layers = [nn.Identity() for _ in seconds]
    times = dict(zip(layers, seconds.values(), strict=True))
    monkeypatch.setattr(
        triton_modules, '_replay', lambda layer, x: lambda: time.sleep(times[layer])
    )
    assert triton_modules._fastest(layers, torch.zeros(1)) is layers[1]
    assert triton_modules._fastest(layers[:1], torch.zeros(1)) is layers[0]


ON_GPU = [name for name, row in BACKENDS.items() if row.device == 'cuda']


@pytest.mark.parametrize('backend', ON_GPU)
def test_graphs_and_kernels_give_what_the_model_gives_at_other_sizes_too(backend):
    if DEVICE == 'cpu':
        pytest.skip('needs a GPU')
    net = lively(gp.GhostNetV2(0.5)).to(DEVICE)
    fast = gp.optimize(net, torch.randn(2, 3, 64, 64, device=DEVICE), backend, rounds=1)
    tolerance = 1e-3 if BACKENDS[backend].dtype == 'float32' else 0.1
    for size in ((2, 3, 64, 64), (3, 3, 97, 65)):
        x = torch.randn(size, device=DEVICE)
        for got, want in zip(fast(x), net(x), strict=True):
            assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.skipif(DEVICE == 'cuda', reason='is about machines without a GPU')
def test_without_a_gpu_its_backends_are_not_tried_and_refused_by_name(residual, monkeypatch):
    x = torch.randn(1, 3, 16, 16)
    rows = tuple(BACKENDS[name] for name in ('eager', 'fused', *ON_GPU))
    monkeypatch.setattr(optimizing, 'ROWS', rows)
    report = gp.optimize(residual, x, dtypes=('float32', 'bfloat16'), rounds=1).report
    assert [trial.backend for trial in report.trials] == ['eager', 'fused']
    with pytest.raises(ValueError, match='triton-bf16 does not work here: runs on cuda only'):
        gp.optimize(residual, x, 'triton-bf16', rounds=1)
