"""Every convolution has a row with its reason, and nobody converts nothing in silence."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.reasons import FINAL, REASONS

ENDS = {'keep_first': False, 'keep_last': False}


def sound():
    return nn.Sequential(nn.Conv1d(4, 32, 3), nn.ReLU(), nn.Conv1d(32, 64, 3, groups=2)), (2, 4, 50)


def video():
    parts = nn.Conv3d(3, 16, 3, padding=1), nn.Conv3d(16, 32, (1, 3, 3)), nn.Conv3d(32, 8, 1)
    return nn.Sequential(*parts), (1, 3, 4, 8, 8)


def generator():
    first, second = nn.ConvTranspose2d(16, 32, 4, 2, 1, groups=4), nn.ConvTranspose2d(32, 3, 4, 2)
    return nn.Sequential(first, nn.ReLU(), second), (2, 16, 5, 7)


def flat_generator():
    return nn.Sequential(nn.ConvTranspose1d(4, 6, 3, 2, bias=False)), (2, 4, 9)


def deep_generator():
    return nn.Sequential(nn.ConvTranspose3d(4, 6, 2, 2), nn.Conv3d(6, 4, 1)), (1, 4, 3, 4, 5)


def lazy():
    net = nn.Sequential(nn.LazyConv1d(8, 3), nn.LazyConvTranspose1d(4, 3))
    net(torch.zeros(1, 4, 9))
    return net, (2, 4, 9)


NETS = {
    sound: ['1d', '1d'],
    video: ['3d', '3d', '3d'],
    generator: ['transposed', 'transposed'],
    flat_generator: ['transposed'],
    deep_generator: ['transposed', '3d'],
    lazy: ['1d', 'transposed'],
}
each_net = pytest.mark.parametrize('build', NETS, ids=lambda build: build.__name__)


@each_net
def test_every_convolution_has_a_row_with_its_costs(build):
    net, shape = build()
    x = torch.randn(shape)
    plan = gp.plan(net, x)
    assert [row.reason for row in plan.layers] == NETS[build]
    counted = {row.name: row.macs // len(x) for row in gp.count(net, x).rows}
    assert {row.name: row.costs['macs_before'] for row in plan.layers} == counted
    assert plan.totals['macs_after'] == plan.totals['macs_before'] == sum(counted.values())
    params = {n: sum(p.numel() for p in m.parameters()) for n, m in net.named_modules()}
    assert all(row.costs['params_before'] == params[row.name] for row in plan.layers)
    assert all(f'keep ({code})' in plan.report() for code in NETS[build])
    assert set(NETS[build]) <= set(REASONS) & set(FINAL)


@each_net
@pytest.mark.parametrize('options', [{}, {'macs': 1.0}, {'exclude': '*'}, ENDS], ids=str)
def test_where_nothing_can_be_converted_convert_raises(build, options):
    net, shape = build()
    x = torch.randn(shape)
    code = NETS[build][0]
    said = rf'none is converted.*{NETS[build].count(code)} x {code} \('
    with pytest.raises(ValueError, match=said):
        gp.convert(net, x, **options)
    with pytest.raises(ValueError, match=said):
        gp.plan(net, x, **options).apply(net)


def test_a_plan_is_saved_and_read_again_and_its_rows_cannot_be_edited_in(tmp_path):
    net, size = video()
    gp.plan(net, torch.randn(size)).save(tmp_path / 'plan.json')
    plan = gp.ConversionPlan.load(tmp_path / 'plan.json')
    assert plan.layers[1].shape.kernel_size == (1, 3, 3) and plan.layers[1].shape.kind.endswith(
        '1x3x3'
    )
    assert list(json.loads((tmp_path / 'plan.json').read_text())['rows'][0]['shape']) == [
        'in_channels', 'out_channels', 'kernel_size', 'groups', 'bias', 'pixels'
    ]  # fmt: skip
    for reason in ('3d', ''):
        layer = replace(plan.layers[1], decision='convert', reason=reason)
        edited = replace(plan, layers=(plan.layers[0], layer, *plan.layers[2:]))
        with pytest.raises(ValueError, match=r"'1'.* cannot be converted .3d."):
            edited.apply(net)


def test_rows_stand_in_the_order_of_the_forward_pass_and_the_ends_are_those_of_all_convs():
    net = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2, 2), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(2),
        nn.Conv1d(16, 4, 1),
    )  # fmt: skip
    x = torch.randn(1, 3, 9, 9)
    converted, plan = gp.convert(net, x)
    assert [row.reason for row in plan.layers] == ['transposed', '', '', '1d']
    assert gp.count(converted, x).macs == plan.totals['macs_after']


@pytest.mark.parametrize(
    'build',
    [
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 8, 2), nn.Conv2d(8, 8, 3)
        ),
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3))),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4)),
    ],
    ids=['ends', 'depthwise', 'computed', 'no conv'],
)
def test_networks_of_two_dimensions_that_cannot_be_converted_raise(build):
    with pytest.raises(ValueError, match=r'nothing to convert|none is converted'):
        gp.convert(build(), torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize(
    'options', [{'macs': 1.0}, {'exclude': '*'}, {'ratio': 1}, {'params': 1.0}], ids=str
)
def test_keeping_everything_by_choice_is_an_answer_and_is_said(options, caplog):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 8, 3))
    x = torch.randn(1, 3, 16, 16)
    with caplog.at_level(logging.WARNING):
        converted, plan = gp.convert(net, x, **options)
    assert not any(row.converts for row in plan.layers)
    assert torch.equal(converted(x), net(x))
    assert 'of the 3 convolutions of Sequential none is converted' in caplog.text


def test_a_plan_edited_to_keep_everything_is_applied(caplog):
    net, x = nn.Sequential(nn.Conv2d(3, 16, 3)), torch.randn(1, 3, 9, 9)
    plan = gp.plan(net, x, **ENDS)
    plan = plan.replace_layer('0', decision='keep')
    assert torch.equal(plan.apply(net)(x), net(x))
    assert '1 x edited' in caplog.text


def test_a_budget_that_cannot_be_met_counts_the_reasons():
    net, shape = video()
    with pytest.raises(ValueError, match=r'at the least.*of 3 convolutions stay: 3 x 3d'):
        gp.plan(net, torch.randn(shape), macs=0.5)


class Functional(nn.Module):
    """Half of its multiply-adds are in a convolution that no module makes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.kernel = nn.Parameter(torch.ones(4, 4, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(self.conv(x), self.kernel, padding=1)


def test_the_report_says_which_share_stands_in_no_row():
    x = torch.randn(1, 4, 8, 8)
    assert '50.0 % of the multiply-adds stand in no row' in gp.plan(Functional(), x).report()
    assert 'in no row' not in gp.plan(nn.Conv2d(4, 4, 3), x).report()


def test_convs_of_other_libraries_have_rows():
    layers = pytest.importorskip('timm.layers')

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixed = layers.MixedConv2d(16, 32, [3, 5])
            self.standard = layers.ScaledStdConv2d(32, 16, 3)
            self.conditional = layers.CondConv2d(16, 8, 3, num_experts=4)

        def forward(self, x):
            x = self.standard(self.mixed(x))
            return self.conditional(x, torch.ones(len(x), 4))

    rows = gp.plan(Net(), torch.randn(2, 16, 9, 9), **ENDS).layers
    assert {row.name: row.reason for row in rows} == {
        'mixed.0': '', 'mixed.1': '', 'standard': 'subclass', 'conditional': 'custom'
    }  # fmt: skip


def test_deformable_and_quantized_convs_have_rows():
    ops = pytest.importorskip('torchvision.ops')

    class Deformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset, self.conv = nn.Conv2d(3, 18, 3), ops.DeformConv2d(3, 8, 3)

        def forward(self, x):
            return self.conv(x, self.offset(x))

    x = torch.randn(1, 3, 9, 9)
    assert [r.reason for r in gp.plan(Deformed(), x, **ENDS).layers] == ['', 'custom']
    quantization = torch.ao.quantization
    net = nn.Sequential(quantization.QuantStub(), nn.Conv2d(3, 8, 3), quantization.DeQuantStub())
    net.qconfig = quantization.default_qconfig
    ready = quantization.prepare(net.eval())
    ready(x)
    rows = gp.plan(quantization.convert(ready), x).layers
    assert [(row.name, row.reason) for row in rows] == [('1', 'custom')]
    assert rows[0].shape.kernel_size == (3, 3) and rows[0].shape.bias


def test_blocks_that_describe_themselves_like_a_conv_have_no_row_of_their_own():
    cnn = pytest.importorskip('mmcv.cnn')
    net = nn.Sequential(
        cnn.ConvModule(3, 16, 3), cnn.ConvModule(16, 8, 3, conv_cfg=dict(type='Conv'))
    )
    rows = gp.plan(net, torch.randn(1, 3, 9, 9), **ENDS).layers
    assert [row.name for row in rows] == ['0.conv', '1.conv']
