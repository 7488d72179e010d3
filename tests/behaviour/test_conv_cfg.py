"""``conv_cfg=dict(type='ghost_plugin.GhostConv2d')`` in the parts that mmcv builds."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')
pytest.importorskip('mmdet')

from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.registry import MODELS, init_default_scope

import ghost_plugin as gp

GHOST = dict(type='ghost_plugin.GhostConv2d', ratio=2)
BN = dict(type='BN')
EXPORTED = (
    'in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'transposed',
    'output_padding', 'groups',
)  # fmt: skip
MAPS = [(64, 16), (128, 8), (256, 4), (512, 2)]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def ghosts(model):
    return [m for m in model.modules() if isinstance(m, gp.GhostConv2d)]


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(stride=2, padding=2, dilation=2),
        dict(stride=(1, 2), padding=(0, 1), groups=4),
        dict(padding=1, padding_mode='reflect'),
        dict(padding=1, padding_mode='circular', bias=True),
        dict(padding=1, order=('norm', 'act', 'conv')),
    ],
)
def test_a_conv_module_exports_what_an_ordinary_conv_would(options):
    ours, theirs = (
        ConvModule(8, 16, 3, conv_cfg=conv, norm_cfg=BN, **options) for conv in (GHOST, None)
    )
    assert isinstance(ours.conv, gp.GhostConv2d)
    assert [getattr(ours, n) for n in EXPORTED] == [getattr(theirs, n) for n in EXPORTED]
    x = torch.randn(2, 8, 9, 11)
    assert ours(x).shape == theirs(x).shape
    ours(x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize('group_size', [4, 'all'])
def test_ghosts_of_several_primary_channels(group_size):
    cfg = dict(**GHOST, group_size=group_size)
    net = MODELS.build(dict(type='MobileNetV2', widen_factor=0.25, conv_cfg=cfg))
    sizes = {ghost.group_size for ghost in ghosts(net) if ghost.ghosts_per_group}
    assert sizes == {4} or (group_size == 'all' and len(sizes) > 1)
    sum(t.square().mean() for t in net(torch.randn(2, 3, 32, 32))).backward()
    assert all(p.grad.isfinite().all() for ghost in ghosts(net) for p in ghost.parameters())


def test_a_conv_without_a_norm_gets_its_bias():
    assert ConvModule(8, 16, 1, conv_cfg=GHOST).conv.primary_conv.bias is not None
    assert ConvModule(8, 16, 1, conv_cfg=GHOST, norm_cfg=BN).conv.primary_conv.bias is None


PARTS = {
    'ResNet': dict(type='ResNet', depth=18),
    'ResNeXt': dict(type='ResNeXt', depth=50, groups=4, base_width=4),
    'FPN': dict(
        type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5, norm_cfg=BN
    ),
    'PAFPN': dict(type='PAFPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=4),
    'RetinaHead': dict(
        type='RetinaHead', num_classes=3, in_channels=64, feat_channels=16, norm_cfg=BN
    ),
    'FCOSHead': dict(type='FCOSHead', num_classes=3, in_channels=64, feat_channels=16, norm_cfg=BN),
}


def arguments(name):
    if name.startswith('ResNe'):
        return torch.randn(2, 3, 64, 64)
    sizes = [(64, side) for _, side in MAPS] + [(64, 1)] if name.endswith('Head') else MAPS
    return tuple(torch.randn(2, channels, side, side) for channels, side in sizes)


@pytest.mark.parametrize('name', PARTS)
def test_parts_take_it_train_and_keep_their_shapes(name, randomise_norms):
    ours, theirs = (MODELS.build({**PARTS[name], 'conv_cfg': conv}) for conv in (GHOST, None))
    assert ghosts(ours)
    given = arguments(name)
    made, wanted = (list(flat(part(given))) for part in (ours, theirs))
    assert [t.shape for t in made] == [t.shape for t in wanted]
    sum(t.square().mean() for t in made).backward()
    taught = [p for ghost in ghosts(ours) for p in ghost.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in taught)


def flat(output):
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for one in output:
            yield from flat(one)


@pytest.mark.parametrize('tool', ['fuse_conv_bn', 'gp.fuse'])
@pytest.mark.parametrize('least', [1, 100])
def test_norms_fold_where_they_can_and_the_output_stays(tool, least, randomise_norms):
    """``least=100`` leaves the narrow convs dense: both kinds beside each other in one block."""
    conv = dict(**GHOST, min_in_channels=least)
    net = MODELS.build(dict(type='ResNet', depth=18, conv_cfg=conv))
    randomise_norms(net)
    x = torch.randn(1, 3, 64, 64)
    want, other = net(x), copy.deepcopy(net)
    other = fuse_conv_bn(other) if tool == 'fuse_conv_bn' else gp.fuse(other)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in one.modules()) for one in (net, other)]
    assert (norms[1] < norms[0]) == (tool == 'gp.fuse' or least > 1)
    torch.testing.assert_close(other(x), want, rtol=1e-4, atol=1e-4)


def test_what_needs_one_weight_says_that_there_is_none():
    module = ConvModule(8, 16, 1, conv_cfg=GHOST, norm_cfg=BN, efficient_conv_bn_eval=True)
    assert module.train()(torch.randn(2, 8, 4, 4)).shape == (2, 16, 4, 4)
    with pytest.raises(AttributeError, match='primary_conv and in cheap_operation'):
        module.eval()(torch.randn(2, 8, 4, 4))
    assert not hasattr(module.conv, 'weight')
