"""Halves of Ghost layers that PyTorch joins where something reads the whole."""

import pytest
import torch
import torch.nn.functional as F
from helpers.chains import JOINS, READS, Calls, chain, check_close, drawn
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.comparison import tensors
from ghost_plugin.deploy.concat_elimination.lazy_concat import Halves, keep_apart
from ghost_plugin.layers.ghost import Ghost

X = torch.randn(2, 3, 16, 12)


@torch.no_grad()
def joined(model, *inputs):
    """How often a model joins with halves apart; it must give what it gave before."""
    want = [model(x) for x in inputs]
    keep_apart(model)
    with Calls() as calls:
        found = [model(x) for x in inputs]
    check_close([value + 0 for value in tensors(found)], want)
    return calls.of['cat'] / len(inputs)


@pytest.mark.parametrize('name', ['GhostNet', 'GhostNetV2', 'GhostNetV3'])
def test_backbones_join_nothing_but_means(name, randomise_norms):
    model = randomise_norms(getattr(gp, name)(0.5, out_indices=(2, 4))).eval()
    fused = gp.fuse(model)
    with torch.no_grad(), Calls() as calls:
        fused(torch.randn(1, 3, 64, 64))
    assert calls.of['cat'] == 32
    assert joined(fused, torch.randn(1, 3, 64, 64), torch.randn(3, 3, 97, 131)) == calls.of['mean']


def test_a_converted_network_does_not_join(residual):
    model, _ = gp.convert(residual, X, ratio=2, exclude=['stem'], keep_last=False)
    before = sum(isinstance(m, Ghost) for m in model.modules())
    assert before and joined(gp.fuse(model), X) < before


@pytest.mark.parametrize('name', READS)
def test_what_reads_halves_gives_the_same(name):
    # Means, and functions that have no way with halves here (PReLU, ``tensor.to(halves)``).
    needed = name in ('gate', 'slopes', 'shift')
    assert joined(chain(nn.ReLU(inplace=True), READS[name]()), X) == needed


@pytest.mark.parametrize('name', JOINS)
def test_what_reads_the_whole_gets_it(name):
    assert joined(chain(nn.ReLU(), JOINS[name]()), X) >= 1


@pytest.mark.parametrize('seed', range(12))
def test_any_chain_gives_the_same(seed):
    joined(drawn(seed), X)


OTHER = torch.randn(1, 5, 4, 4)
# Of maps, in place or beside others; each must leave what it leaves of joined maps.
STEPS = {
    'add_': lambda x, y: x.add_(y),
    'add_ to others': lambda x, y: y.add_(x),
    '+=': lambda x, y: x.__iadd__(y),
    'relu_': lambda x, y: x.relu_(),
    'inplace': lambda x, y: F.silu(x, inplace=True),
    'named': lambda x, y: torch.mul(input=y, other=x),
    'written into the whole': lambda x, y: x.clamp_(max=0.3).add_(x),
    'by a number': lambda x, y: (2 - x) / 3 + x * torch.tensor(4.0),
    'by maps': lambda x, y: y[:, :, :1, :1] * x,
    'batches': lambda x, y: x + y.repeat(3, 1, 1, 1)[:, None],
    'twice': lambda x, y: torch.cat((x, y, x), 1) + x.sum(),
    'places': lambda x, y: F.max_pool2d(x, 2, return_indices=True)[1],
    'depthwise': lambda x, y: F.conv2d(x, y.view(5, 1, 4, 4), groups=5, padding='same'),
    'two each': lambda x, y: F.conv2d(
        x, y.view(5, 1, 4, 4).repeat(2, 1, 1, 1), y.flatten()[:10], groups=5
    ),
    'named conv': lambda x, y: F.conv2d(x, weight=y, stride=2, bias=y[0, 0, 0, :1]),
    'all means': lambda x, y: x.mean() + x.mean((0, 2, 3), keepdim=True),
    'means': lambda x, y: torch.mean(x, (-1, -2)) @ y[0, :, :, 0],
}  # fmt: skip


@pytest.mark.parametrize('name', STEPS)
def test_every_step_leaves_what_it_leaves_of_joined_maps(name):
    parts, other = [torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4)], OTHER.clone()
    whole, same = torch.cat(parts, 1), other.clone()
    halves = Halves(parts)
    with torch.no_grad():
        got, want = STEPS[name](halves, other), STEPS[name](whole, same)
    assert got.shape == want.shape and got.dtype == want.dtype
    torch.testing.assert_close(got + 0, want)
    torch.testing.assert_close(halves + 0, whole)
    torch.testing.assert_close(other, same)


def test_what_asks_for_no_values_joins_nothing():
    x = Halves([torch.randn(1, 2, 4, 6), torch.randn(1, 3, 4, 6)])
    with Calls() as calls:
        assert (x.shape, x.size(), x.size(-1)) == ((1, 5, 4, 6), (1, 5, 4, 6), 6)
        assert (x.dim(), x.ndim, x.dtype, x.device.type) == (4, 4, torch.float32, 'cpu')
    assert not calls.of['cat'] and len(x.parts) == 2


def test_optimize_runs_a_copy():
    model = gp.GhostNet(0.5, out_indices=(3,)).eval()
    x = torch.randn(2, 3, 64, 64)
    run = gp.optimize(model, x, 'channels-last-split', rounds=1)
    (got,) = run(x)
    assert type(got) is torch.Tensor
    check_close(got, model(x))
    assert not any('concat' in vars(m) for m in model.modules())


def test_where_all_maps_are_small_it_is_said(residual, monkeypatch):
    monkeypatch.setattr('ghost_plugin.deploy.concat_elimination.lazy_concat.LEAST', 10**9)
    for model in (residual, gp.GhostNet(0.5).eval()):
        with pytest.raises(
            ValueError, match=r'channels-last-split does not work here: .*no halves'
        ):
            gp.optimize(model, torch.randn(1, 3, 32, 32), 'channels-last-split', rounds=1)
