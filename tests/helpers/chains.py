"""Chains of layers behind a Ghost conv, which read its parts or their concatenation."""

import random

import torch
import torch.nn.functional as F
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.flat_io import tensors


def check_close(found, wanted):
    """Compare nested tensors, relative to the largest value of each."""
    for got, want in zip(tensors(found), tensors(wanted), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))


class Gate(nn.Module):
    """A gate from the means, as in squeeze-excite."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.conv(x.mean((2, 3), keepdim=True)))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Shortcut(nn.Module):
    """Something beside its input."""

    def __init__(self, *inside):
        super().__init__()
        self.inside = nn.Sequential(*inside)

    def forward(self, x):
        return x + self.inside(x)


SHIFT = torch.linspace(-1, 1, 12).view(12, 1, 1)
# Layers of 12 channels that can read both parts alone, and layers that need the concatenation.
READS = {
    'relu': nn.ReLU,
    'slopes': lambda: nn.PReLU(12, 0.3),
    'clip': nn.ReLU6,
    'silu': nn.SiLU,
    'depthwise': lambda: nn.Conv2d(12, 12, 5, padding=2, groups=12),
    'dense': lambda: nn.Conv2d(12, 12, 3, padding=1, bias=False),
    'ghost': lambda: gp.GhostConv2d(12, 12, 3, padding=1, bias=True),
    'gate': Gate,
    'pool': lambda: nn.MaxPool2d(3, 1, 1),
    'resize': lambda: Apply(lambda x: F.interpolate(x, scale_factor=2, mode='nearest')),
    'sized': lambda: Apply(lambda x: F.interpolate(x, size=x.shape[-1], mode='nearest')),
    'shift': lambda: Apply(lambda x: x * 2 - SHIFT.to(x)),
    'columns': lambda: Apply(lambda x: x + SHIFT.view(12)),
    'shortcut': lambda: Shortcut(nn.Conv2d(12, 12, 1), nn.ReLU()),
    'ghost shortcut': lambda: Shortcut(gp.GhostConv2d(12, 12, 1), nn.Conv2d(12, 12, 1)),
}
CONCATS = {
    'grouped': lambda: nn.Conv2d(12, 12, 3, padding=1, groups=3),
    'softmax': lambda: nn.Softmax(1),
    'order': lambda: Apply(lambda x: x[:, torch.arange(12).flip(0)]),
    'cut': lambda: Apply(lambda x: torch.cat((x[:, 2:], x[:, :2]), 1)),
    'one gate': lambda: Apply(lambda x: x * x.mean(1, keepdim=True).sigmoid()),
    'three': lambda: Apply(lambda x: torch.cat((x[:, :6], x[:, :3], x[:, 9:]), 1)),
    'transposed': lambda: nn.ConvTranspose2d(12, 12, 1),
}


def chain(*parts):
    torch.manual_seed(0)
    first = gp.GhostConv2d(3, 12, 3, padding=1, bias=True)
    return nn.Sequential(first, *parts, nn.Conv2d(12, 5, 1)).eval()


def drawn(seed):
    """Chain six random layers."""
    table = READS | CONCATS
    table.pop('columns')  # it needs images of one width
    names = random.Random(seed).choices(list(table), k=6)
    return chain(*(table[name]() for name in names))
