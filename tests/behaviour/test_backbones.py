"""Requirements on every backbone."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.backbones.bottlenecks import GhostBottleneck

SMALL = {
    'GhostNet': lambda **k: gp.GhostNet(0.5, **k),
    'GhostNetV2': lambda **k: gp.GhostNetV2(0.5, **k),
    'GhostNetV3': lambda **k: gp.GhostNetV3(0.5, **k),
    'GGhostRegNet': lambda **k: gp.GGhostRegNet('002', **k),
    'RepGhostNet': lambda **k: gp.RepGhostNet(0.5, **k),
}
SIZE = {'GGhostRegNet': {'arch': '002'}}
every = pytest.mark.parametrize('name', SMALL)


def published(name, out_indices):
    return gp.out_channels(name, out_indices, **SIZE.get(name, {'width': 0.5}))


@every
@pytest.mark.parametrize('output_stride', [8, 16, 32])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3, 4), (2, 4), (1,)])
def test_features_are_the_published_ones(name, output_stride, out_indices):
    net = SMALL[name](out_indices=out_indices, output_stride=output_stride).eval()
    maps = net(torch.randn(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == net.out_channels == published(name, out_indices)
    assert [64 // m.shape[2] for m in maps] == gp.out_strides(name, out_indices, output_stride)


@every
@pytest.mark.parametrize('size', [(97, 131), (33, 33), (32, 32), (1, 1)])
def test_any_size_trains_every_parameter(name, size):
    net = SMALL[name](drop_path_rate=0.1)
    sum(m.square().mean() for m in net(torch.randn(2, 3, *size))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@every
def test_one_image_trains(name):
    net = SMALL[name]()
    net(torch.randn(1, 3, 64, 64))[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@every
def test_symbolic_traces_train_and_predict(name):
    net, x = SMALL[name](out_indices=(4,)).double(), torch.randn(2, 3, 64, 64).double()
    for mode in (True, False):
        traced = torch.fx.symbolic_trace(copy.deepcopy(net).train(mode))
        want = copy.deepcopy(net).train(mode)(x)
        torch.testing.assert_close(traced(x), want)


@every
@pytest.mark.parametrize('in_channels', [1, 4])
def test_other_input_channels(name, in_channels):
    out = SMALL[name](in_channels=in_channels)(torch.randn(2, in_channels, 32, 32))[-1]
    assert out.shape == (2, published(name, (4,))[0], 1, 1)


@every
def test_stem_stride_1_makes_all_strides_half_as_large(name):
    net = SMALL[name](stem_stride=1, out_indices=(0, 4)).eval()
    maps = net(torch.randn(1, 3, 32, 32))
    assert (
        [32 // m.shape[2] for m in maps] == gp.out_strides(name, (0, 4), stem_stride=1) == [1, 16]
    )


@pytest.mark.parametrize('name', ['GhostNet', 'GhostNetV2', 'GhostNetV3', 'RepGhostNet'])
def test_blocks_may_start_as_their_shortcuts_and_learn_all_the_same(name):
    net, x = SMALL[name](zero_init_residual=True), torch.randn(4, 3, 64, 64)
    blocks = [m for m in net.modules() if isinstance(m, GhostBottleneck)]
    for block in blocks:
        block.register_forward_hook(
            lambda m, given, y: torch.testing.assert_close(y, m.shortcut(given[0]))
        )
    fused = gp.fuse(net.eval(), x)
    assert fused.folding.max_abs_diff < 1e-5
    for block in blocks:
        block._forward_hooks.clear()
    optimizer = torch.optim.SGD(net.train().parameters(), 0.1)
    for _ in range(2):  # the first step moves the scales, the second what lies behind them
        optimizer.zero_grad()
        net(x)[-1].square().mean().backward()
        optimizer.step()
    moved = [p.grad for block in blocks for p in block.ghost1.parameters()]
    assert sum(bool(gradient.any()) for gradient in moved) > len(moved) / 2


@every
def test_checkpointing_changes_no_value(name):
    plain = SMALL[name](drop_path_rate=0.2)
    frugal = copy.deepcopy(plain)
    frugal.grad_checkpointing = True
    x, outputs = torch.randn(4, 3, 64, 64), []
    for net in (plain, frugal):
        torch.manual_seed(1)
        outputs.append(net(x))
        sum(m.square().mean() for m in outputs[-1]).backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    for a, b in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
    for a, b in zip(plain.buffers(), frugal.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@every
@pytest.mark.parametrize('cheap_copy', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_equal(name, cheap_copy, randomise_norms):
    net = randomise_norms(SMALL[name]())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(cheap_copy(net)(x), net(x), rtol=0, atol=0)


@every
def test_channels_last_and_bf16(name, randomise_norms, assert_equal_maps):
    net, x = randomise_norms(SMALL[name]()), torch.randn(1, 3, 64, 64)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    out = last(x.to(memory_format=torch.channels_last))
    assert_equal_maps(out, net(x), 1e-3)
    net.train()
    with torch.autocast('cpu', torch.bfloat16):
        maps = net(torch.randn(2, 3, 64, 64))
    sum(m.float().mean() for m in maps).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@every
def test_shape_can_be_asked_without_memory(name):
    with torch.device('meta'):
        net = SMALL[name](in_channels=4)
    assert net(torch.randn(2, 4, 32, 32, device='meta'))[-1].is_meta


@pytest.mark.parametrize('name', ['GhostNet', 'GhostNetV2', 'GhostNetV3'])
@pytest.mark.parametrize(
    'options',
    [
        {'ratio': 3},
        {'ratio': 4, 'dw_size': 5},
        {'ratio': 1},
        {'se': False},
        {'act_layer': nn.SiLU},
        {'dw_size': 1},
    ],
)
def test_every_option_of_the_table(name, options):
    net = SMALL[name](**options)
    maps = net(torch.randn(2, 3, 64, 64))
    assert [m.shape[1] for m in maps] == published(name, (1, 2, 3, 4))
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize('cheap', ['shift', 'linear'])
@pytest.mark.parametrize('name', ['GhostNet', 'GhostNetV2'])
def test_other_cheap_operations(name, cheap):
    net = SMALL[name](cheap=cheap)
    net(torch.randn(2, 3, 32, 32))[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('group_size', [4, 'all'])
@pytest.mark.parametrize('name', ['GhostNet', 'GhostNetV2'])
def test_ghosts_of_several_primary_channels(name, group_size):
    plain, net = SMALL[name](), SMALL[name](group_size=group_size)
    x = torch.randn(2, 3, 32, 32)
    maps = net(x)
    assert [m.shape for m in maps] == [m.shape for m in plain(x)]
    maps[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert gp.count(net, x).macs > gp.count(plain, x).macs


@pytest.mark.parametrize(
    'build, said',
    [
        (lambda: gp.GhostNetV3(0.5, cheap='shift'), 'depthwise'),
        (lambda: gp.GhostNetV3(0.5, group_size=2), 'group_size must be 1, got 2'),
        (lambda: gp.GhostNet(0.5, group_size=64), 'group_size=64 is more than'),
        (lambda: gp.GGhostRegNet('033'), "did you mean '032'"),
        (lambda: gp.GGhostRegNet('032', out_indices=(5,)), r'0\.\.4'),
        (lambda: gp.GGhostRegNet('032', cheap_ratio=0.99), 'cheap_ratio'),
        (lambda: gp.GhostNetV2(stem_stride=3), 'stem_stride'),
        (lambda: gp.GhostNetV2(ratio=0.5), 'ratio'),
        (lambda: gp.out_channels('GGhostRegNet', width=2.0), 'arch'),
        (lambda: gp.out_channels('GGhostRegNet', (5,)), r'0\.\.4'),
    ],
)
def test_bad_values_are_named(build, said):
    with pytest.raises(ValueError, match=said):
        build()
