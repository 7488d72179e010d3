import pytest
import torch
from torch import nn

from ghost_plugin.conversion.fitting import closed_form
from ghost_plugin.conversion.fitting.closed_form import (
    collect_layer_moments,
    fit_closed_form,
    ghost_channels,
    has_closed_form,
    read_kernels,
    write_kernels,
)
from ghost_plugin.layers import GhostConv2d

LAYERS = [
    pytest.param({'kernel_size': 1, 'ratio': 2, 'group_size': 4}, id='mixed'),
    pytest.param({'kernel_size': 3, 'ratio': 1.5, 'group_size': 'all'}, id='all'),
    pytest.param({'kernel_size': 3, 'ratio': 2, 'stride': 2, 'padding': 1}, id='one primary'),
    pytest.param({'kernel_size': 3, 'ratio': 2, 'groups': 4, 'dilation': 2}, id='groups'),
    pytest.param({'kernel_size': 3, 'ratio': 1, 'groups': 16, 'padding': 1}, id='depthwise'),
    pytest.param(
        {'kernel_size': 3, 'ratio': 1, 'padding': 1, 'padding_mode': 'reflect'}, id='dense'
    ),
]


def layer(options, seed=0):
    torch.manual_seed(seed)
    return GhostConv2d(16, 32, **{'dw_size': 1, 'bias': False, 'permuted': True} | options)


def disturbed(ghost, options, share=0.3):
    other = layer(options)
    other.load_state_dict(ghost.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += share * parameter.std() * torch.randn_like(parameter)
    return other


@torch.no_grad()
def fitted(ghost, x, y, free=True):
    every = slice(None)
    seen = collect_layer_moments(ghost, x[:40], y[:40], every, free)
    held = collect_layer_moments(ghost, x[40:], y[40:], every, free)
    used = torch.ones(ghost.num_computed(), dtype=torch.float64)
    kernels, error = fit_closed_form(read_kernels(ghost), used, seen, held)
    write_kernels(ghost, kernels)
    return error


@pytest.mark.parametrize('options', LAYERS)
def test_a_planted_layer_is_found(options):
    planted = layer(options)
    x = torch.randn(50, 16, 9, 9).relu()
    with torch.no_grad():
        y = ghost_channels(planted, x)
        other = disturbed(planted, options)
        before = (ghost_channels(other, x) - y).var()
        fitted(other, x, y)
        gap = ghost_channels(other, x) - y
    assert (gap - gap.mean((0, 2, 3), keepdim=True)).square().mean() < 1e-2 * before


@pytest.mark.parametrize('options', LAYERS)
@pytest.mark.parametrize('free', [True, False])
def test_the_error_is_that_of_the_held_images(options, free):
    ghost = layer(options)
    x = torch.randn(50, 16, 9, 9).relu() + 1
    with torch.no_grad():
        y = ghost_channels(layer(options, 1), x)
        seen = collect_layer_moments(ghost, x[:40], y[:40], slice(None), free)
        held = collect_layer_moments(ghost, x[40:], y[40:], slice(None), free)
        used = torch.ones(ghost.num_computed(), dtype=torch.float64)
        _, error = fit_closed_form(read_kernels(ghost), used, seen, held)
        gap = (y - ghost_channels(ghost, x))[40:].double()
    start = gap - gap.mean((0, 2, 3), keepdim=True) if free else gap
    assert error <= float(start.square().mean((0, 2, 3)).sum()) * (1 + 1e-5)


def test_a_dense_layer_gets_the_ridge_solution():
    """Moments with little ridge give what least squares on all positions gives."""
    conv = layer({'kernel_size': 1, 'ratio': 1})
    x = torch.randn(50, 16, 9, 9, dtype=torch.float64)
    y = torch.einsum('oi,nihw->nohw', torch.randn(32, 16, dtype=torch.float64), x)
    y = y + 0.1 * torch.randn_like(y)
    fitted(conv.double(), x, y)
    rows, wanted = (maps.transpose(0, 1).flatten(1).T for maps in (x, y))
    rows, wanted = (values - values.mean(0) for values in (rows, wanted))
    best = torch.linalg.lstsq(rows, wanted).solution.T
    found = conv.primary_conv.weight.detach().flatten(1)
    assert (found - best).norm() < 1e-2 * best.norm()


def test_held_images_are_fitted_to_in_the_end(monkeypatch):
    options = {'kernel_size': 3, 'ratio': 1, 'padding': 1}
    x = torch.randn(50, 16, 3, 3)
    with torch.no_grad():
        y = ghost_channels(layer(options, 1), x)
        noisy = y + torch.randn_like(y)

    def error():
        ghost = layer(options)
        with torch.no_grad():
            fitted(ghost, x, noisy, free=False)
            return float((y - ghost_channels(ghost, x)).square().mean())

    found = error()
    monkeypatch.setattr(closed_form, '_fit_all', lambda problem, start, found, ridge: found)
    assert found < 0.95 * error()


def test_an_exact_layer_stays():
    ghost = layer({'kernel_size': 3, 'ratio': 2, 'group_size': 4})
    before = {name: value.clone() for name, value in ghost.state_dict().items()}
    x = torch.randn(50, 16, 9, 9)
    with torch.no_grad():
        y = ghost_channels(ghost, x)
    fitted(ghost, x, y)
    for name, value in ghost.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)


def test_subclasses_pad_in_their_own_ways():
    class Shifted(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.roll(1, 3))

    def with_conv(cls, kernel, groups=1):
        ghost = layer({'kernel_size': kernel, 'ratio': 1, 'groups': groups})
        ghost.primary_conv = cls(16, 32, kernel, groups=groups, bias=False)
        return ghost

    assert has_closed_form(with_conv(nn.Conv2d, 3))
    assert not has_closed_form(with_conv(Shifted, 3))
    assert not has_closed_form(layer({'kernel_size': 1, 'ratio': 2, 'dw_size': 3}))
    ghost = with_conv(Shifted, 3, groups=16)  # its taps are asked from the module itself
    assert has_closed_form(ghost)
    x = torch.randn(50, 16, 9, 9)
    wanted = with_conv(Shifted, 3, groups=16)
    with torch.no_grad():
        wanted.primary_conv.weight.normal_()
        fitted(ghost, x, wanted.primary_conv(x))
    torch.testing.assert_close(
        ghost.primary_conv.weight, wanted.primary_conv.weight, rtol=0.01, atol=0.01
    )
