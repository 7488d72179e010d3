"""A dense conv that is a Ghost conv in disguise is found out.

The planted Ghost has primary kernels whose support is the inner part of the dense kernel, and
cheap kernels with taps only where they move by whole taps of the dense kernel (a tap of the cheap
kernel moves by stride / dilation of them), so that cheap * primary fits into the dense kernel.
Where no space is left, or no tap moves by whole ones, ghost channels are multiples of primary ones.

At the border such a dense conv and its Ghost may differ whatever the weights: the dense kernel
sees padded inputs, the cheap kernel padded outputs. Where they do, calibration images are blank
near the edges, so that a fit can be exact, and only the interior of the output is held to the bar.
With padding by zeros a bias of a primary channel would show at the border of even a blank image;
there only the ghost channels have biases (data-free fits, which see no border, get all of them).
"""

import itertools

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.fitting import least_squares

BAR = {torch.float32: 1e-5, torch.float64: 1e-10}
OPTIONS = {
    'kernel': [1, 3, 5, (1, 3), (3, 1)],
    'stride': [1, 2, (2, 1)],
    'dilation': [1, 2],
    'ratio': [2, 3, 4],
    'dw_size': [1, 3, 5],
    'bias': [False, True],
    'mode': ['zeros', 'reflect', 'replicate', 'circular'],
}
EVERY = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
# A step that shares no factor with the numbers of options, so that all of these meet.
SOME = EVERY[::73]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def moves(kernel, stride, dilation, dw_size):
    """Along one axis: how far each tap of the cheap kernel moves; None where that does not fit."""
    radius = dw_size // 2
    steps = [stride * tap / dilation for tap in range(-radius, radius + 1)]
    return [int(s) if s == int(s) and abs(s) <= kernel // 2 else None for s in steps]


class Planted:
    """A Ghost conv with random weights, and the dense conv that is the same."""

    def __init__(self, dtype, kernel, stride, dilation, ratio, dw_size, bias, mode, bare=True):
        self.kernel, self.dw_size, taps = pair(kernel), dw_size, pair(kernel)[0] * pair(kernel)[1]
        self.moves = [
            moves(*axis, dw_size)
            for axis in zip(self.kernel, pair(stride), pair(dilation), strict=True)
        ]
        padding = tuple(k // 2 * d for k, d in zip(self.kernel, pair(dilation), strict=True))
        shape = (dw_size**2 // taps + 3, 12, kernel, stride, padding, dilation, 1, bias, mode)
        self.ghost = gp.GhostConv2d(*shape, ratio=ratio, dw_size=dw_size, permuted=True).to(dtype)
        self.dense = nn.Conv2d(*shape).to(dtype)
        self.ghost.order.copy_(torch.randperm(12))
        self._draw(bare and mode == 'zeros')
        self._compose()

    @torch.no_grad()
    def _draw(self, bare):
        primary, cheap = self.ghost.primary_conv, self.ghost.cheap_operation
        inner = torch.zeros(self.kernel)
        rows, columns = (
            slice(margin, k - margin)
            for k, axis in zip(self.kernel, self.moves, strict=True)
            for margin in [max(abs(move) for move in axis if move is not None)]
        )
        inner[rows, columns] = 1
        fits = torch.tensor([[a is not None and b is not None for b in self.moves[1]]
                             for a in self.moves[0]])  # fmt: skip
        primary.weight.copy_(torch.randn(primary.weight.shape) * inner)
        cheap.weight.copy_(torch.randn(cheap.weight.shape) * fits)
        for conv in (primary, cheap):
            if conv.bias is not None:
                nn.init.normal_(conv.bias)
        if primary.bias is not None and bare:
            nn.init.zeros_(primary.bias)

    @torch.no_grad()
    def _compose(self):
        primary, cheap = self.ghost.primary_conv, self.ghost.cheap_operation
        kernels = primary.weight.repeat_interleave(self.ghost.ghosts_per_group, 0)
        made = torch.zeros_like(kernels)
        for (i, down), (j, right) in itertools.product(*map(enumerate, self.moves)):
            if down is not None and right is not None:
                tap = cheap.weight[:, :, i, j, None, None]
                made += tap * kernels.roll((down, right), (2, 3))
        self.dense.weight.copy_(torch.cat((primary.weight, made))[self.ghost.order])
        if primary.bias is not None:
            base = primary.bias.repeat_interleave(self.ghost.ghosts_per_group)
            biases = base * cheap.weight.sum((1, 2, 3)) + cheap.bias
            self.dense.bias.copy_(torch.cat((primary.bias, biases))[self.ghost.order])

    def images(self, number, blank=False):
        """Random ones; with ``blank`` there is nothing near their edges."""
        conv = self.dense
        edge = 2 * (max(conv.padding) + max(conv.stride) * (self.dw_size // 2))
        size = 2 * edge + 10 * max(conv.stride)
        x = torch.randn(number, conv.in_channels, size, size + 2, dtype=conv.weight.dtype)
        if blank and edge:
            x *= nn.functional.pad(torch.ones_like(x[:, :, edge:-edge, edge:-edge]), [edge] * 4)
        return x

    def inside(self, maps):
        cut = self.dw_size // 2
        return maps[:, :, cut:-cut, cut:-cut] if cut else maps


def relative(got, want):
    return float((got - want).norm() / want.norm())


@torch.no_grad()
def check(dtype, calibrated, case):
    torch.manual_seed(1)
    planted = Planted(dtype, **case, bare=calibrated)
    x = planted.images(4)
    want = planted.dense(x)
    bar = BAR[dtype]
    assert relative(planted.inside(planted.ghost(x)), planted.inside(want)) < bar, 'the plant fails'
    everywhere = relative(planted.ghost(x), want) < bar
    settings = {name: case[name] for name in ('ratio', 'dw_size')}
    plan = gp.plan(planted.dense, x, include='*', **settings)
    calibration = [planted.images(8, blank=not everywhere) for _ in range(2)]
    converted = plan.apply(planted.dense, calibration=calibration if calibrated else None)
    got = converted(x)
    assert isinstance(converted, gp.GhostConv2d)
    assert relative(planted.inside(got), planted.inside(want)) <= bar
    assert not everywhere or relative(got, want) <= bar


def name(case):
    return ' '.join(f'{key}={value}' for key, value in case.items())


@pytest.mark.parametrize('dtype', BAR, ids=str)
@pytest.mark.parametrize('calibrated', [True, False], ids=['calibrated', 'blind'])
@pytest.mark.parametrize('case', SOME, ids=name)
def test_a_planted_ghost_is_recovered(case, calibrated, dtype):
    check(dtype, calibrated, case)


def test_cheap_kernels_are_fitted_as_well_one_channel_at_a_time(monkeypatch):
    monkeypatch.setattr(least_squares, 'CHEAP_ELEMENTS', 1)
    check(torch.float64, True, SOME[0])


@pytest.mark.slow
@pytest.mark.parametrize('dtype', BAR, ids=str)
@pytest.mark.parametrize('calibrated', [True, False], ids=['calibrated', 'blind'])
@pytest.mark.parametrize('part', range(24))
def test_every_planted_ghost_is_recovered(part, calibrated, dtype):
    for case in EVERY[part::24]:
        try:
            check(dtype, calibrated, case)
        except Exception as error:
            error.add_note(f'{case}')
            raise
