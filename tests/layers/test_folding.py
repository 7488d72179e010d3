import pytest
import torch
from torch import nn

import ghost_plugin as gp

X = torch.randn(2, 3, 9, 8, dtype=torch.float64)


def conv(inputs=4):
    return nn.Conv2d(inputs, 4, 3, padding=1)


def check(net, folded, randomise_norms, x=X):
    """The net fuses to the same function, with so many norms folded; the fused one."""
    net = randomise_norms(net.double())
    with torch.no_grad():
        fused = gp.fuse(net)
        torch.testing.assert_close(fused(x), net(x), rtol=1e-11, atol=1e-11)
    assert fused.folding.folded == folded
    return fused


class Every(nn.Sequential):
    """All that its layers give, one after the other."""

    def forward(self, x):
        return torch.cat([x := layer(x) for layer in self], 1)


class Twice(nn.Module):
    """Layers in order, one of them run once more."""

    def __init__(self, again: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(4), nn.BatchNorm2d(4), nn.ReLU())
        self.first, self.again = conv(3), again

    def forward(self, x):
        x = self.first(x)
        return self.layers(x) + self.layers[self.again](x)


def activation_between():
    act = nn.ReLU()
    return nn.Sequential(conv(3), act, conv(), act, nn.BatchNorm2d(4))


def one_norm_for_two():
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(conv(3), norm, nn.ReLU(), conv(), norm)


def one_conv_for_two():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3))


@pytest.mark.parametrize(
    'net',
    [
        activation_between,
        one_norm_for_two,
        one_conv_for_two,
        lambda: Every(conv(3), nn.BatchNorm2d(4)),
        lambda: Twice(0),
        lambda: Twice(1),
    ],
)
def test_what_something_else_runs_too_stays(net, randomise_norms):
    assert check(net(), 0, randomise_norms).folding.left


class Listed(nn.Module):
    """A block that stands in a list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(3), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList([self.block])

    def forward(self, x):
        return self.block(x)


def test_a_block_of_two_places_is_folded_at_both(randomise_norms):
    fused = check(Listed(), 1, randomise_norms)
    assert fused.block is fused.blocks[0]
