"""Untrained networks: outputs of order one in eval mode, and few steps of training that show."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.backbones.bottlenecks import GhostBottleneck
from ghost_plugin.backbones.common import ConvNormAct
from ghost_plugin.backbones.g_ghost_regnet import GhostStage, RegNetBottleneck
from ghost_plugin.layers.common import draw_weights, second_moment
from ghost_plugin.layers.ghost import GhostModuleV2
from ghost_plugin.layers.reparam import GhostModuleV3

BLOCKS = (GhostBottleneck, RegNetBottleneck, GhostStage, ConvNormAct)
LEAST, LARGEST = 0.04, 5.0  # standard deviations that count as order one
NETS = {
    'V1': lambda **kwargs: gp.GhostNet(**{'width': 0.5, 'out_indices': (5,), **kwargs}),
    'V2': lambda **kwargs: gp.GhostNetV2(**{'width': 0.5, 'out_indices': (5,), **kwargs}),
    'V3': lambda **kwargs: gp.GhostNetV3(**{'width': 0.5, 'out_indices': (5,), **kwargs}),
    'G-Ghost': lambda **kwargs: gp.GGhostRegNet(**{'arch': '004', **kwargs}),
    'Rep': lambda **kwargs: gp.RepGhostNet(**{'width': 0.5, 'out_indices': (5,), **kwargs}),
}
COMMON = [
    {},
    {'in_channels': 1},
    {'in_channels': 12},
    {'stem_stride': 1},
    {'output_stride': 8},
    {'act_layer': nn.LeakyReLU},
    {'norm_layer': lambda channels: nn.Identity()},
    {'norm_layer': lambda channels: nn.GroupNorm(1, channels)},
    {'drop_path_rate': 0.2},
]
GHOST = [
    {'ratio': 1},
    {'ratio': 1.5},
    {'ratio': 4},
    {'dw_size': 1},
    {'dw_size': 5},
    {'width': 0.25},
    {'width': 1.3},
    {'se': False},
    {'zero_init_residual': True},
    {'act_layer': nn.Hardswish},
    {'act_layer': nn.SiLU},
    {'act_layer': nn.GELU},
]
CHEAP = [{'cheap': 'shift'}, {'cheap': 'linear'}]
CASES = [
    *((name, options) for name in NETS for options in COMMON),
    *((name, options) for name in ('V1', 'V2', 'V3') for options in GHOST),
    *((name, options) for name in ('V1', 'V2') for options in CHEAP),
    *(('Rep', options) for options in GHOST if 'ratio' not in options),
    ('V3', {'deploy': True}),
    ('Rep', {'deploy': True}),
    ('G-Ghost', {'arch': '002'}),
    ('G-Ghost', {'arch': '032'}),
    ('G-Ghost', {'cheap_ratio': 0.3}),
]


def spread(net, images):
    """Output, and the standard deviation of what each block gives, in eval mode."""
    found = {}
    for name, module in net.eval().named_modules():
        if isinstance(module, BLOCKS):
            module.register_forward_hook(
                lambda _, __, maps, name=name: found.update({name: maps.std().item()})
            )
    with torch.no_grad():
        return net(images)[-1], found


@pytest.mark.parametrize(('name', 'options'), CASES)
def test_every_block_of_an_untrained_network_has_outputs_of_order_one(name, options):
    net = NETS[name](**options)
    images = torch.randn(2, options.get('in_channels', 3), 96, 96)
    with torch.no_grad():
        exact = copy.deepcopy(net).eval().double()(images.double())[-1]
    given, found = spread(net, images)
    outside = {name: std for name, std in found.items() if not LEAST < std < LARGEST}
    assert found
    assert not outside
    assert (given - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize('name', NETS)
def test_fusing_an_untrained_network_changes_rounding_only(name):
    net, images = NETS[name]().eval(), torch.randn(2, 3, 96, 96)
    fused = gp.fuse(net, images)
    with torch.no_grad():
        wanted, given = net(images)[-1], fused(images)[-1]
    assert (given - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    'name', ['ghostnet_plugin_050', 'ghostnet_plugin_v2_100', 'ghostnet_plugin_v3_050',
             'ghostnet_plugin_gghost_032', 'ghostnet_plugin_rep_050'],
)  # fmt: skip
def test_classifiers_of_timm_start_with_small_outputs(name):
    timm = pytest.importorskip('timm')
    net = timm.create_model(name, num_classes=10).eval()
    with torch.no_grad():
        logits = net(torch.randn(2, 3, 96, 96))
    assert 1e-3 < logits.std() < 2


@pytest.mark.parametrize(
    'kind', ['GhostNet', 'GhostNetV2', 'GhostNetV3', 'GGhostRegNet', 'RepGhostNet']
)
def test_backbones_of_openmmlab_start_the_same(kind):
    pytest.importorskip('mmengine')
    from ghost_plugin.registry import MODELS

    size = {'arch': '004'} if kind == 'GGhostRegNet' else {'width': 0.5}
    net = MODELS.build(dict(type=f'ghost_plugin.{kind}', **size))
    net.init_weights()
    _, found = spread(net, torch.randn(2, 3, 96, 96))
    assert all(LEAST < std < LARGEST for std in found.values())


@pytest.mark.parametrize('layer', [gp.GhostModule, GhostModuleV2, GhostModuleV3])
@pytest.mark.parametrize(
    'options', [{}, {'ratio': 3}, {'relu': False}, {'dw_size': 5}, {'act_layer': nn.SiLU}]
)
def test_layers_alone_keep_the_variance(layer, options):
    module = layer(24, 48, **options).eval()
    with torch.no_grad():
        given = module(torch.randn(4, 24, 32, 32))
    # The attention multiplies by one half.
    assert 0.15 < given.std() < 1.5


def test_convs_of_a_conv_layer_with_ghosts_vary_alike():
    ghost = gp.GhostConv2d(16, 64, 3, padding=1)
    with torch.no_grad():
        maps = ghost(torch.randn(8, 16, 32, 32))
    assert 0.7 < maps[:, 32:].std() / maps[:, :32].std() < 1.3


@pytest.mark.parametrize('scale', [0.1, 1.0, 10.0])
@pytest.mark.parametrize('cheap', ['depthwise', 'shift', 'linear'])
def test_without_inheritance_a_ghost_has_the_scale_of_the_conv(scale, cheap):
    net = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)).eval()
    nn.init.normal_(net[0].weight, std=scale / 12)
    images = torch.randn(4, 16, 32, 32)
    converted, _ = gp.convert(
        net, images, inherit=False, keep_last=False, keep_first=False, cheap=cheap
    )
    assert isinstance(converted[0], gp.GhostConv2d)
    with torch.no_grad():
        assert 0.7 < converted(images).std() / net(images).std() < 1.4


@pytest.mark.parametrize(
    ('conv', 'inputs'),
    [
        (nn.Conv2d(64, 64, 3, groups=64), 9),
        (nn.Conv2d(64, 128, 1, bias=False), 64),
        (nn.Conv2d(32, 64, 3, groups=4), 72),
        (nn.Linear(100, 50), 100),
    ],
)
def test_weights_are_drawn_by_the_inputs_of_one_output(conv, inputs):
    draw_weights(conv, moment=0.5, variance=2.0)
    assert conv.weight.std().item() == pytest.approx((2.0 / 0.5 / inputs) ** 0.5, rel=0.1)
    assert conv.bias is None or not conv.bias.any()


@pytest.mark.parametrize(
    ('act', 'expected'), [(nn.ReLU(), 0.5), (nn.Identity(), 1.0), (nn.PReLU(init=0.5), 0.625)]
)
def test_mean_square_behind_an_activation(act, expected):
    assert second_moment(act, 1.0) == pytest.approx(expected, rel=0.02)
    assert second_moment(act, 4.0) == pytest.approx(4 * expected, rel=0.02)


def test_networks_can_be_built_without_memory():
    with torch.device('meta'):
        nets = [gp.GhostNet(0.5, act_layer=nn.PReLU), gp.GhostNetV3(0.5), gp.GGhostRegNet('002')]
    assert all(p.is_meta for net in nets for p in net.parameters())


@pytest.mark.parametrize('name', ['V1', 'V2', 'V3'])
def test_running_statistics_are_about_right_from_the_start(name):
    """In training mode the norms see variances near the 1 that running statistics start with."""
    net = NETS[name]().train()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(8, 3, 96, 96))
    variances = torch.stack([norm.running_var.mean() for norm in norms])
    assert 0.1 < variances.median() < 2


def test_few_steps_of_training_show_in_eval_mode(monkeypatch):
    """With timm's first weights this is 0.22 to 0.54, with those of earlier versions 0.1."""
    for name in ('timm', 'sklearn'):
        pytest.importorskip(name)
    monkeypatch.setattr(sys, 'path', [str(Path(__file__).parents[2] / 'tools/studies'), *sys.path])
    import first_weights as study

    trained, held, exact = study.train('ghostnet_plugin_050', 0, [38], 'adamw', 1e-3)
    assert trained > 0.7
    assert held > 0.6
    assert held > exact - 0.1
