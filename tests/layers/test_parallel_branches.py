import copy

import pytest
import torch
from torch import nn

from ghost_plugin.layers import parallel_branches as module
from ghost_plugin.layers.parallel_branches import Branches, joinable
from ghost_plugin.layers.reparam import GhostModuleV3


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    monkeypatch.setattr(module, 'MIN_JOINT_VALUES', 2)


def both_ways(net, x, monkeypatch):
    """Output, gradients and buffers by the joint and by the plain sum."""
    results = []
    for allowed in (True, False):
        if not allowed:
            for place in ('ghost_plugin.layers.parallel_branches', 'ghost_plugin.layers.reparam'):
                monkeypatch.setattr(f'{place}.joinable', lambda *args: False)
        twin, given = copy.deepcopy(net), x.clone().requires_grad_()
        out = twin(given)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        grads = {name: p.grad for name, p in twin.named_parameters()}
        results.append((out, given.grad, grads, dict(twin.named_buffers())))
    return results


@pytest.mark.parametrize('size', [(6, 8, 1, 1), (12, 4, 1, 1), (6, 6, 3, 6), (6, 12, 5, 6)])
@pytest.mark.parametrize('stride', [1, 2])
def test_joint_sum_is_the_plain_sum(size, stride, monkeypatch):
    in_channels, out_channels, kernel, groups = size
    net = Branches(
        in_channels, out_channels, kernel, nn.BatchNorm2d, stride, groups=groups
    ).double()
    x = torch.randn(3, in_channels, 9, 7, dtype=torch.float64) + 2
    assert joinable(x, net)
    torch.testing.assert_close(*both_ways(net, x, monkeypatch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('ratio', [2, 3])
@pytest.mark.parametrize('dw_size', [1, 3, 5])
def test_whole_module(ratio, dw_size, monkeypatch):
    net = GhostModuleV3(5, 12, ratio=ratio, dw_size=dw_size, dw_dilation=2).double()
    x = torch.randn(2, 5, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(*both_ways(net, x, monkeypatch), rtol=1e-9, atol=1e-9)


def test_single_precision_stays_close_far_from_zero(monkeypatch):
    net = Branches(8, 8, 1, nn.BatchNorm2d)
    x = torch.randn(4, 8, 16, 16) + 30
    (out, *_), (want, *_) = both_ways(net, x, monkeypatch)
    torch.testing.assert_close(out, want, rtol=1e-3, atol=1e-3)


def test_not_where_it_would_differ():
    x = torch.randn(2, 4, 5, 5)
    assert joinable(x, Branches(4, 4, 1, nn.BatchNorm2d))
    assert not joinable(x, Branches(4, 4, 1, nn.BatchNorm2d).eval())
    assert not joinable(x, Branches(4, 4, 1, nn.SyncBatchNorm))
    assert not joinable(x, Branches(4, 4, 1, lambda c: nn.BatchNorm2d(c, momentum=None)))
    assert not joinable(x[:1, :, :1, :1], Branches(4, 4, 1, nn.BatchNorm2d))
    assert not joinable(x, Branches(4, 4, 3, nn.BatchNorm2d))
    assert not joinable(x, Branches(4, 1, 1, nn.BatchNorm2d))
    frozen = Branches(4, 4, 1, nn.BatchNorm2d)
    frozen[1].bn1.eval()
    assert not joinable(x, frozen)
    assert not joinable(x, Branches(4, 4, 1, nn.BatchNorm2d), skip=nn.GroupNorm(1, 4))
    tracer = torch.fx.symbolic_trace(Branches(4, 4, 1, nn.BatchNorm2d))
    assert any(node.op == 'call_module' for node in tracer.graph.nodes)


def test_second_derivatives_are_refused():
    net = Branches(4, 4, 3, nn.BatchNorm2d, groups=4)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x).sum() ** 2, x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()
    assert module.NUM_BRANCHES == 3
