import copy
import pickle

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.folded import FoldedGhostConv2d

SETTINGS = [
    {},
    {'ratio': 3},
    {'ratio': 2.5, 'dw_size': 5},
    {'dw_size': 1},
    {'ratio': 1},
    {'cheap': 'linear'},
    {'bias': False},
    {'padding_mode': 'circular'},
    {'groups': 4},
    {'ratio': 1.25},  # four primary maps in five without a ghost
]


def orders(net):
    return [m for m in net.modules() if getattr(m, 'order', None) is not None]


@pytest.mark.parametrize('permuted', [False, True])
@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_a_norm_behind_a_ghost_conv_folds_exactly_at_the_border_too(
    settings, permuted, randomise_norms
):
    ghost = gp.GhostConv2d(8, 20, 3, padding=1, permuted=permuted, **settings)
    if permuted:
        ghost.order = torch.randperm(20)
    net = randomise_norms(nn.Sequential(ghost, nn.BatchNorm2d(20), nn.ReLU()).double())
    with torch.no_grad():
        net[1].weight[3] = 0.0  # a channel that training has switched off
    fused = gp.fuse(net)
    assert isinstance(fused[0], FoldedGhostConv2d)
    assert isinstance(fused[1], nn.Identity)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-11, atol=1e-11)


def test_without_a_border_no_step_is_left(randomise_norms):
    net = randomise_norms(nn.Sequential(gp.GhostConv2d(8, 20, 3, dw_size=1), nn.BatchNorm2d(20)))
    fused = gp.fuse(net)
    assert (fused.folding.folded, fused.folding.steps) == (1, 0)
    assert fused[0].shift is None
    assert fused[0].scale is None


def test_shifted_ghosts_keep_their_norm(randomise_norms):
    net = randomise_norms(
        nn.Sequential(gp.GhostConv2d(8, 20, 3, cheap='shift'), nn.BatchNorm2d(20))
    )
    fused = gp.fuse(net, torch.randn(1, 8, 6, 6))
    assert fused.folding.left == ('1',)
    assert fused.folding.max_abs_diff == 0


def test_a_converted_network_loses_norms_dropout_and_the_order_that_one_conv_reads(
    converted, residual
):
    x = torch.randn(2, 3, 20, 13)
    fused = gp.fuse(converted, x)
    report = fused.folding
    assert (report.folded, report.steps, report.orders, report.left) == (3, 2, 1, ())
    assert report.max_abs_diff < 1e-5
    # A shortcut adds the maps of the second one, so its order stays.
    assert (len(orders(converted)), len(orders(fused))) == (2, 1)
    assert not any(isinstance(m, nn.Dropout | nn.BatchNorm2d) for m in fused.modules())
    assert isinstance(converted.drop, nn.Dropout)


def test_a_second_time_changes_nothing(converted):
    once = gp.fuse(converted)
    twice = gp.fuse(once)
    report = twice.folding
    assert (report.merged, report.folded, report.orders) == (0, 0, 0)
    torch.testing.assert_close(twice.state_dict(), once.state_dict(), rtol=0, atol=0)


def test_memory_format_dtype_flags_and_pickle(converted):
    for parameter in converted.expand.parameters():
        parameter.requires_grad_(False)
    fused = gp.fuse(converted.to(memory_format=torch.channels_last).double())
    weight = fused.expand.primary_conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float64
    assert not any(p.requires_grad for p in fused.expand.parameters())
    assert all(p.requires_grad for p in fused.project.parameters())
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(pickle.loads(pickle.dumps(fused))(x), fused(x))


def test_training_mode_is_refused(converted):
    with pytest.raises(ValueError, match=r'training mode.*model\.eval\(\)'):
        gp.fuse(converted.train())


class Shared(nn.Module):
    """A conv that runs twice, with one norm and with two."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))

    def forward(self, x):
        for norm in (self.norms[0], self.norms[-1]):
            x = norm(self.conv(x)).relu()
        return x


@pytest.mark.parametrize(('norms', 'folded'), [(1, 1), (2, 0)])
def test_a_conv_that_runs_twice_folds_only_with_one_norm(norms, folded, randomise_norms):
    net = randomise_norms(Shared(norms).double())
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    fused = gp.fuse(net, x)
    assert fused.folding.folded == folded
    assert fused.folding.max_abs_diff < 1e-12


class Branching(nn.Module):
    """Looks at values, so that only its part can be followed."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) if x.sum() > 0 else self.part(-x)


def test_parts_are_followed_where_the_whole_cannot_be(converted):
    x = torch.randn(1, 3, 16, 16)
    fused = gp.fuse(Branching(converted).eval(), x)
    assert (fused.folding.folded, fused.folding.orders) == (3, 1)
    assert fused.folding.max_abs_diff < 1e-5


def test_norms_of_timm_leave_their_activation(randomise_norms):
    timm = pytest.importorskip('timm')
    net = randomise_norms(timm.create_model('tf_efficientnet_lite0', num_classes=7))
    x = torch.randn(1, 3, 64, 64)
    net = gp.convert(net, x)[0]
    fused = gp.fuse(net, x)
    assert fused.folding.left == ()
    assert fused.folding.orders > 10
    torch.testing.assert_close(fused(x), net(x), rtol=1e-4, atol=1e-5)


def test_detectors_of_openmmlab(randomise_norms):
    pytest.importorskip('mmdet')
    from ghost_plugin.integrations import sources

    source = sources.load('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    net, example = randomise_norms(source.model), source.wrap(torch.randn(1, 3, 64, 64))
    net = gp.convert(net, example, ratio=2)[0]
    before = copy.deepcopy(net.state_dict())
    fused = gp.fuse(net, example)
    assert fused.folding.folded == 20
    assert fused.folding.max_abs_diff < 1e-4
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
