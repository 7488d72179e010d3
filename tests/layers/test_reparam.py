import copy

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.layers.norm import PooledBatchNorm2d
from ghost_plugin.layers.reparam import GhostModuleV3

NETS = {
    'GhostNet': lambda **k: gp.GhostNet(0.5, **k),
    'GhostNetV2': lambda **k: gp.GhostNetV2(0.5, **k),
    'GhostNetV3': lambda **k: gp.GhostNetV3(0.5, **k),
    'GGhostRegNet': lambda **k: gp.GGhostRegNet('002', **k),
    'RepGhostNet': lambda **k: gp.RepGhostNet(0.5, **k),
}
NORMS = (nn.BatchNorm2d, PooledBatchNorm2d)


def norms(net):
    return [m for m in net.modules() if isinstance(m, NORMS)]


@pytest.mark.parametrize('ratio', [1, 2, 3, 2.5])
@pytest.mark.parametrize('dw_size', [1, 3, 5])
@pytest.mark.parametrize('attention', [False, True])
def test_module_merges_at_any_ratio(ratio, dw_size, attention, randomise_norms):
    module = GhostModuleV3(6, 15, ratio=ratio, dw_size=dw_size, attention=attention).double()
    randomise_norms(module)
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    want = module(x)
    assert want.shape == (2, 15, 9, 7)
    report = module.switch_to_deploy()
    assert report.merged == 1
    assert report.max_abs_diff < 1e-12
    assert not norms(module)
    torch.testing.assert_close(module(x), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('output_stride', [32, 8])
def test_nothing_but_convs_is_left(name, output_stride, randomise_norms, assert_equal_maps):
    net = randomise_norms(NETS[name](output_stride=output_stride).double())
    x = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fused = gp.fuse(net, x)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert not norms(fused)
    assert all(p.requires_grad for p in fused.parameters())
    assert fused.folding.folded > 0
    want = net(x)
    assert fused.folding.max_abs_diff <= 1e-11 * max(m.abs().max() for m in want)
    assert_equal_maps(fused(x), want, 1e-11)
    again = gp.fuse(fused)
    assert (again.folding.merged, again.folding.folded) == (0, 0)
    sum(m.sum() for m in fused(x)).backward()
    assert all(p.grad is not None for p in fused.parameters())


@pytest.mark.parametrize('name', NETS)
def test_in_place_no_norm_is_left_either(name, randomise_norms):
    net = randomise_norms(NETS[name]())
    net.switch_to_deploy()
    assert not norms(net)


def test_training_mode_is_refused_and_nothing_changes():
    net = gp.GhostNetV3(0.5)
    keys = list(net.state_dict())
    for call in (gp.fuse, gp.GhostNetV3.switch_to_deploy):
        with pytest.raises(ValueError, match='training mode'):
            call(net)
    net.eval()
    net.blocks[3].train()
    with pytest.raises(ValueError, match=r"such as 'blocks\.3"):
        net.switch_to_deploy()
    assert list(net.state_dict()) == keys


def test_norms_that_follow_the_batch_are_refused_before_anything_changes():
    net = gp.GhostNetV3(0.5, norm_layer=lambda c: nn.GroupNorm(1, c)).eval()
    keys = list(net.state_dict())
    with pytest.raises(ValueError, match='GroupNorm cannot be merged'):
        net.switch_to_deploy()
    assert list(net.state_dict()) == keys


def test_flags_dtype_and_format_stay(randomise_norms):
    net = randomise_norms(gp.GhostNetV3(0.5))
    net.conv_stem.requires_grad_(False)
    net.bn1.requires_grad_(False)
    net = net.to(torch.bfloat16, memory_format=torch.channels_last)
    fused = gp.fuse(net)
    assert not any(p.requires_grad for p in fused.conv_stem.parameters())
    assert all(p.requires_grad for p in fused.blocks.parameters())
    assert {p.dtype for p in fused.parameters()} == {torch.bfloat16}
    weight = fused.blocks[1][0].ghost1.primary_conv[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('family', [gp.GhostNetV3, gp.RepGhostNet])
def test_either_form_loads_into_either_or_says_why_not(family, randomise_norms, assert_equal_maps):
    trained = randomise_norms(family(0.5).double())
    deployed = family(0.5, deploy=True).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    want = trained(x)
    deployed.load_state_dict(trained.state_dict(), strict=True)
    assert_equal_maps(deployed(x), want, 1e-11)
    other = family(0.5, deploy=True).double().eval()
    gp.load_weights(other, trained.state_dict())
    other.load_state_dict(deployed.state_dict(), strict=True)
    torch.testing.assert_close(other(x), deployed(x), rtol=0, atol=0)
    for load in (trained.load_state_dict, lambda state: gp.load_weights(trained, state)):
        with pytest.raises(ValueError, match='deploy=True'):
            load(deployed.state_dict())
    torch.testing.assert_close(trained(x), want, rtol=0, atol=0)
    with pytest.raises(ValueError, match='load before that'):
        gp.load_weights(gp.fuse(trained), trained.state_dict())


def test_weights_of_another_family_are_not_taken_for_merged_ones():
    with pytest.raises(ValueError, match='check variant and width'):
        gp.load_weights(gp.GhostNetV3(0.5), gp.GhostNet(0.5).state_dict())


def test_one_pooled_value_trains_as_in_eval():
    norm = PooledBatchNorm2d(3)
    nn.init.uniform_(norm.running_mean)
    x = torch.randn(1, 3, 1, 1)
    want = copy.deepcopy(norm).eval()(x)
    torch.testing.assert_close(norm(x), want)
    assert norm.num_batches_tracked == 0
    plain, batch = nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    norm = PooledBatchNorm2d(3)
    torch.testing.assert_close(norm(batch), plain(batch))
    torch.testing.assert_close(dict(norm.state_dict()), dict(plain.state_dict()))
