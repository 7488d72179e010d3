"""Every kind of conv that other converters get wrong: converted right, or left with a reason."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import ghost_plugin as gp
from ghost_plugin.layers.ghost import split_channels

ALL = {'keep_first': False, 'keep_last': False}


def images(channels=8):
    return torch.randn(2, channels, 17, 15)


@pytest.fixture
def x():
    return images()


def decided(model, x=None, **options):
    x = images() if x is None else x
    return {
        row.name: row.reason or 'converted' for row in gp.plan(model, x, **ALL, **options).layers
    }


def reason(conv, x=None, **options):
    return decided(nn.Sequential(conv), x, **options)['0']


@pytest.mark.parametrize(
    'options',
    [
        {'kernel_size': 1, 'stride': 2, 'in_channels': 16},  # the shortcut of every ResNet
        {'kernel_size': 3, 'stride': (2, 1), 'padding': 1},
        {'kernel_size': 3, 'padding': (2, 0)},
        {'kernel_size': 3, 'padding': 'same'},
        {'kernel_size': 3, 'padding': 'valid'},
        {'kernel_size': 3, 'padding': 2, 'dilation': 2},
        {'kernel_size': 3, 'padding': (1, 3), 'dilation': (1, 3)},
        {'kernel_size': (1, 3), 'padding': (0, 1)},
        {'kernel_size': (3, 1), 'padding': (1, 0), 'stride': (1, 2)},
        {'kernel_size': 5, 'padding': 2, 'bias': False},
        {'kernel_size': 2},
        {'kernel_size': 3, 'padding': 1, 'groups': 2},
        {'kernel_size': 3, 'padding': 1, 'groups': 4},
        {'kernel_size': 3, 'padding': 1, 'padding_mode': 'reflect'},
        {'kernel_size': 3, 'padding': 1, 'padding_mode': 'replicate', 'stride': 2},
        {'kernel_size': 3, 'padding': 1, 'padding_mode': 'circular', 'dilation': 2},
    ],
    ids=lambda o: ' '.join(f'{k}={v}' for k, v in o.items()),
)
@pytest.mark.parametrize('calibrated', [False, True], ids=['blind', 'calibrated'])
def test_every_option_of_a_conv_is_kept(options, calibrated, redundant, assert_lossless):
    conv = redundant(nn.Conv2d(out_channels=16, **{'in_channels': 8, **options}))
    x = torch.randn(8, conv.in_channels, 17, 15)
    ghost = assert_lossless(nn.Sequential(conv), x, calibration=[x] if calibrated else None)[0]
    for name in ('stride', 'padding', 'dilation', 'groups', 'padding_mode', 'kernel_size'):
        assert getattr(ghost.primary_conv, name) == getattr(conv, name)
    assert ghost.cheap_operation.dilation == ghost.cheap_operation.stride == (1, 1)
    assert ghost.cheap_operation.padding_mode == conv.padding_mode
    has_bias = conv.bias is not None
    assert (ghost.primary_conv.bias is not None) == has_bias
    assert (ghost.cheap_operation.bias is not None) == has_bias


@pytest.mark.parametrize('cheap', ['linear', 'shift', 'depthwise'])
@pytest.mark.parametrize('bias', [True, False])
def test_every_cheap_operation_is_counted_and_inherits(cheap, bias, x):
    model = nn.Sequential(nn.Conv2d(8, 15, 3, bias=bias)).eval()
    converted, plan = gp.convert(model, x, cheap=cheap, ratio=3, **ALL)
    cost = gp.count(converted, x)
    assert (cost.params, cost.macs // 2) == (
        plan.totals['params_after'],
        plan.totals['macs_after'],
    )
    ghost = converted[0]
    firsts = ghost.order < ghost.primary_conv.out_channels
    torch.testing.assert_close(converted(x)[:, firsts], model(x)[:, firsts])


@pytest.mark.parametrize('cheap', ['linear', 'depthwise'])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('calibrated', [False, True], ids=['blind', 'calibrated'])
def test_multiples_are_found_by_either_cheap_conv(
    cheap, bias, calibrated, redundant, assert_lossless, x
):
    conv = redundant(nn.Conv2d(8, 16, 3, bias=bias))
    calibration = [x] if calibrated else None
    assert_lossless(nn.Sequential(conv), x, cheap=cheap, calibration=calibration)


@pytest.mark.parametrize('channels, ratio', [(15, 2), (7, 3), (10, 4), (3, 2), (9, 1.5), (5, 4)])
def test_channels_that_do_not_divide_are_cut_and_counted(channels, ratio, x):
    converted, plan = gp.convert(nn.Sequential(nn.Conv2d(8, channels, 3)), x, ratio=ratio, **ALL)
    assert converted(x).shape[1] == channels
    assert converted[0].primary_conv.out_channels == split_channels(channels, ratio)[0]
    assert gp.count(converted, x).params == plan.totals['params_after']


def test_order_of_channels_is_restored(redundant, assert_lossless, x):
    """Channels come back where they were, whatever the clusters."""
    model = nn.Sequential(redundant(nn.Conv2d(8, 32, 3)), redundant(nn.Conv2d(32, 16, 1)))
    ghost = assert_lossless(model, x)[0]
    assert sorted(ghost.order.tolist()) == list(range(32))
    assert ghost.order.tolist() != list(range(32))


@pytest.mark.parametrize('groups', [2, 4])
def test_ghosts_stay_in_the_group_of_their_primary(groups, redundant, assert_lossless, x):
    model = nn.Sequential(redundant(nn.Conv2d(8, 16, 3, groups=groups)))
    ghost = assert_lossless(model, x)[0]
    size, primary = 16 // groups, ghost.primary_conv.out_channels
    place = torch.where(
        ghost.order < primary, ghost.order, (ghost.order - primary) // ghost.ghosts_per_group
    )
    group = place // (primary // groups)
    assert torch.equal(group, torch.arange(16) // size)


def test_groups_that_do_not_divide_stay():
    assert reason(nn.Conv2d(8, 20, 3, groups=4), ratio=2) == 'groups'


def test_a_single_output_channel_is_no_depthwise_conv():
    assert reason(nn.Conv2d(8, 1, 3)) == 'no_gain'
    assert reason(nn.Conv2d(1, 16, 5), images(1)) == 'converted'


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv2d(8, 8, 3, groups=8),  # depthwise
        nn.Conv2d(8, 16, 1),  # 8 taps, the cheap kernel has 9
        nn.Conv2d(1, 16, 3),
    ],
)
def test_what_gains_nothing_stays(conv):
    assert reason(conv, images(conv.in_channels)) == 'no_gain'


def test_few_inputs_pay_with_a_smaller_cheap_kernel():
    assert reason(nn.Conv2d(8, 16, 1), dw_size=1) == 'converted'
    assert reason(nn.Conv2d(8, 16, 1), cheap='linear') == 'converted'


def test_one_to_one_everywhere_is_bit_identical(x):
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)).eval()
    converted, plan = gp.convert(model, x, ratio=1, **ALL)
    assert not any(row.converts for row in plan.layers)
    assert torch.equal(converted(x), model(x))


def test_a_row_edited_to_one_is_bit_identical(x):
    model = nn.Sequential(nn.Conv2d(8, 16, 3)).eval()
    plan = gp.plan(model, x, **ALL)
    plan = plan.replace_layer('0', ratio=1)
    assert torch.equal(plan.apply(model)(x), model(x))
    assert torch.equal(plan.apply(model, calibration=[x])(x), model(x))


def test_empty_plan_is_bit_identical(x):
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    converted, plan = gp.convert(model, x, exclude='*', **ALL)
    assert [row.reason for row in plan.layers] == ['excluded', 'excluded']
    assert list(converted.state_dict()) == list(model.state_dict())
    assert torch.equal(converted(x), model(x))


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Lookalike(nn.Conv2d):
    pass


Lookalike.__name__ = 'Conv2dSame'


@pytest.mark.parametrize('kind', [Scaled, Lookalike, torch.ao.nn.qat.Conv2d])
def test_subclasses_stay(kind):
    more = (
        {'qconfig': torch.ao.quantization.default_qconfig} if kind is torch.ao.nn.qat.Conv2d else {}
    )
    assert reason(kind(8, 16, 3, **more)) == 'subclass'


@pytest.mark.parametrize('name', ['StdConv2d', 'ScaledStdConv2d', 'StdConv2dSame'])
def test_standardised_weights_of_timm_stay(name):
    layers = pytest.importorskip('timm.layers')
    assert reason(getattr(layers, name)(8, 16, 3)) == 'subclass'


def test_padding_of_timm_is_computed_for_each_input(redundant, assert_lossless, x):
    layers = pytest.importorskip('timm.layers')
    conv = redundant(layers.Conv2dSame(8, 16, 3, stride=2))
    converted = assert_lossless(nn.Sequential(conv), x)
    assert type(converted[0].primary_conv) is layers.Conv2dSame
    for size in (12, 15, 16):
        x = torch.randn(1, 8, size, size + 1)
        torch.testing.assert_close(converted(x), conv(x), rtol=1e-4, atol=1e-4)


def test_mixed_convs_of_timm_convert_part_by_part():
    layers = pytest.importorskip('timm.layers')
    model = nn.Sequential(layers.MixedConv2d(32, 32, [3, 5]))
    assert set(decided(model, torch.randn(1, 32, 9, 9)).values()) == {'converted'}


def test_wrapper_of_mmcv_converts(redundant, assert_lossless, x):
    wrappers = pytest.importorskip('mmcv.cnn.bricks.wrappers')
    assert_lossless(nn.Sequential(redundant(wrappers.Conv2d(8, 16, 3))), x)


@pytest.mark.parametrize('padding_mode', ['zeros', 'reflect'])
def test_conv_module_of_mmcv_keeps_its_attributes(padding_mode, redundant, assert_lossless, x):
    cnn = pytest.importorskip('mmcv.cnn')
    model = cnn.ConvModule(8, 16, 3, padding=1, stride=2, padding_mode=padding_mode, act_cfg=None)
    redundant(model.conv)
    converted = assert_lossless(model, x)
    for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation',
                 'transposed', 'output_padding', 'groups'):  # fmt: skip
        assert getattr(converted.conv, name) == getattr(model.conv, name)


def test_conv_modules_of_mmcv_with_other_convs_stay():
    cnn = pytest.importorskip('mmcv.cnn')
    for conv_cfg in ({'type': 'ConvWS'}, {'type': 'ConvAWS'}):
        model = cnn.ConvModule(8, 16, 3, conv_cfg=conv_cfg)
        assert decided(model) == {'conv': 'subclass'}
    model = cnn.ConvModule(8, 16, 3, with_spectral_norm=True)
    assert decided(model) == {'conv': 'parametrized'}


def test_deformable_convs_are_left_alone(x):
    ops = pytest.importorskip('torchvision.ops')

    class Deformable(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Conv2d(8, 18, 3, padding=1)
            nn.init.zeros_(self.offset.weight)
            self.conv = ops.DeformConv2d(8, 16, 3, padding=1)

        def forward(self, x):
            return self.conv(x, self.offset(x))

    model = Deformable().eval()
    converted, plan = gp.convert(model, x, calibration=[x], **ALL)
    said = {row.name: row.reason for row in plan.layers}
    assert said == {'offset': '', 'conv': 'custom'}
    assert type(converted.conv) is ops.DeformConv2d
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize(
    'wrap',
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda conv: prune.l1_unstructured(conv, 'weight', 0.5),
    ],
    ids=['weight_norm', 'spectral_norm', 'new weight_norm', 'new spectral_norm', 'orthogonal',
         'pruned'],
)  # fmt: skip
def test_computed_weights_stay_and_cannot_be_edited_in(wrap, x):
    model = nn.Sequential(wrap(nn.Conv2d(8, 16, 3)))
    plan = gp.plan(model, x, **ALL)
    assert plan.layers[0].reason == 'parametrized'
    assert 'remove that first' in plan.report()
    plan = plan.replace_layer('0', decision='convert')
    with pytest.raises(ValueError, match="'0'"):
        plan.apply(model)


def test_weight_norm_removed_converts():
    conv = weight_norm(nn.Conv2d(8, 16, 3))
    assert reason(nn.utils.remove_weight_norm(conv)) == 'converted'


@pytest.mark.parametrize('pad, size', [('reflect', 2), ('circular', 1)])
def test_convs_of_images_too_small_for_their_padding_mode_stay(pad, size):
    conv = nn.Conv2d(8, 16, 3, padding=1, padding_mode=pad)
    assert reason(conv, torch.randn(1, 8, size, size), dw_size=5) == 'padding'


def test_transposed_convs_stay():
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 3), nn.Conv2d(8, 16, 3))
    assert decided(model) == {'0': 'transposed', '1': 'converted'}
