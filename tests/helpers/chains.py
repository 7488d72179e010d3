"""Chains of layers behind a Ghost conv (what reads halves, what the whole), and calls counted."""

import random
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ghost_plugin as gp
from ghost_plugin.deploy.comparison import tensors


def check_close(found, wanted):
    """As many tensors in both, within a share of the largest value of each."""
    for got, want in zip(tensors(found), tensors(wanted), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))


class Calls(TorchDispatchMode):
    """Counts what reaches PyTorch's kernels."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


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


SHIFT = torch.randn(12, 1, 1)
# What may stand behind a Ghost conv, 12 maps to 12 maps: what reads halves, and what does not.
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
JOINS = {
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
    """Any six of these."""
    table = READS | JOINS
    table.pop('columns')  # it takes pictures of one width only
    names = random.Random(seed).choices(list(table), k=6)
    return chain(*(table[name]() for name in names))
