"""Attributes of norms and convs that are changed on finished networks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import update_bn

import ghost_plugin as gp
from ghost_plugin.layers import parallel_branches
from ghost_plugin.layers.checkpointing import checkpointed
from ghost_plugin.layers.norm import PooledBatchNorm2d, pooled_norm
from ghost_plugin.layers.parallel_branches import Branches
from ghost_plugin.layers.reparam import GhostModuleV3

BUILD = {
    'v1': lambda: gp.GhostNet(0.5),
    'v2': lambda: gp.GhostNetV2(0.5),
    'v3': lambda: gp.GhostNetV3(0.5),
    'g-ghost': lambda: gp.GGhostRegNet('002'),
}
CHANGES = {
    'cumulative': {'momentum': None},
    'slow': {'momentum': 0.01},
    'none': {'momentum': 0.0},
    'eps': {'eps': 0.1},
    'untracked': {'track_running_stats': False},
}


def plain_copy(model):
    """The same model with torch's own norms in the place of pooled ones."""
    twin = copy.deepcopy(model)
    for part in twin.modules():
        if type(part) is PooledBatchNorm2d:
            part.__class__ = nn.BatchNorm2d
    return twin


@pytest.mark.parametrize('name', BUILD)
def test_update_bn_averages_over_all_batches(name):
    net = BUILD[name]()
    twin = plain_copy(net)
    images = torch.rand(6, 3, 64, 64)
    for model in (net, twin):
        update_bn(images.split(2), model)
    torch.testing.assert_close(dict(net.state_dict()), dict(twin.state_dict()))
    assert all(m.momentum == 0.1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    counters = [v for k, v in net.state_dict().items() if k.endswith('num_batches_tracked')]
    assert all(int(counter) == 3 for counter in counters)


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('change', CHANGES)
def test_pooled_norm_is_torchs_own_after_any_change(change, affine):
    norm, plain = PooledBatchNorm2d(3, affine=affine), nn.BatchNorm2d(3, affine=affine)
    batches = torch.randn(4, 4, 3, 2, 2)
    for number, x in enumerate(batches):
        for module in (norm, plain):
            if number == 2:
                vars(module).update(CHANGES[change])
            module.train(number != 3)
        torch.testing.assert_close(norm(x), plain(x), rtol=0, atol=0)
        torch.testing.assert_close(norm.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    'options', [{'momentum': None}, {'track_running_stats': False}, {'affine': False}, {'eps': 0.1}]
)
def test_pooled_norm_keeps_what_the_norm_layer_chose(options):
    norm = pooled_norm(lambda channels: nn.BatchNorm2d(channels, **options), 3)
    plain = nn.BatchNorm2d(3, **options)
    for x in torch.randn(2, 4, 3, 2, 2):
        torch.testing.assert_close(norm(x), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(norm.state_dict(), plain.state_dict(), rtol=0, atol=0)
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(torch.jit.script(norm)(x), plain(x))
    if norm.running_mean is not None:
        assert torch.equal(norm(x[:1, :, :1, :1]), copy.deepcopy(norm).eval()(x[:1, :, :1, :1]))


@pytest.fixture
def _any_size(monkeypatch):
    monkeypatch.setattr(parallel_branches, 'MIN_JOINT_VALUES', 2)


@pytest.mark.parametrize('momentum', [0.1, 0.0, None])
@pytest.mark.usefixtures('_any_size')
def test_checkpointing_takes_the_same_way_twice(momentum):
    net = GhostModuleV3(4, 8, attention=True)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = momentum
    twin, results = copy.deepcopy(net), []
    for module, call in ((net, lambda m, x: m(x)), (twin, checkpointed)):
        x = torch.linspace(-1, 1, 2 * 4 * 8 * 8).view(2, 4, 8, 8).requires_grad_()
        call(module, x).square().sum().backward()
        results.append((x.grad, dict(module.named_buffers())))
    torch.testing.assert_close(*results)


def stretch(net):
    """What helpers for dense prediction do: strides become dilations."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.stride, part.dilation = (1, 1), (2, 2)
            part.padding = tuple(2 * (k // 2) for k in part.kernel_size)


def unpad(net):
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.padding = (0, 0)


def mask(net):
    for part in list(net.modules()):
        if isinstance(part, nn.Conv2d):
            prune.random_unstructured(part, 'weight', 0.5)


def watch(net):
    for part in list(net.modules()):
        part.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize('change', [stretch, unpad, mask, watch], ids=lambda f: f.__name__)
@pytest.mark.usefixtures('_any_size')
def test_branches_follow_what_is_changed_on_them(change, monkeypatch):
    net = Branches(4, 8, 3, nn.BatchNorm2d, stride=2, groups=4)
    assert parallel_branches.joinable(torch.randn(2, 4, 9, 9), net)
    twin = copy.deepcopy(net)
    for model in (net, twin):
        torch.manual_seed(0)
        change(model)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (net, twin)]
    for x in torch.randn(2, 2, 4, 9, 9):
        outs = [net(x), sum(part(x) for part in twin)]
        if change is watch:
            outs[1] = outs[1] * 2
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)
        for out, optimizer in zip(outs, optimizers, strict=True):
            optimizer.zero_grad()
            out.square().sum().backward()
            optimizer.step()


@pytest.mark.parametrize('name', ['v1', 'v3'])
def test_changed_dilations_fold(name, randomise_norms, assert_equal_maps):
    net = randomise_norms(BUILD[name]())
    for part in net.blocks[6:].modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size[0] > 1:
            part.stride, part.dilation = (1, 1), (2, 2)
            part.padding = tuple(2 * (k // 2) for k in part.kernel_size)
        elif isinstance(part, nn.Conv2d):
            part.stride = (1, 1)
    x = torch.randn(1, 3, 64, 64)
    for got, want in zip(gp.fuse(net)(x), net(x), strict=True):
        assert_equal_maps(got, want, 1e-4)
