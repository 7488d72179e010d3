import pytest
import torch
from torch import nn

import ghost_plugin as gp

X = torch.randn(2, 3, 16, 16)


class Tapped(nn.Module):
    """Looks at values, so that nobody can follow that it taps a conv in front of its norm."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.scale = scale

    def forward(self, x):
        y = self.layers(x)
        return (y + self.scale * self.layers[0](x) if x.sum() > -1e9 else y,)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_another_function_is_refused_with_the_figure(dtype, randomise_norms):
    net, x = randomise_norms(Tapped()).to(dtype), X.to(dtype)
    keys = list(net.state_dict())
    with pytest.raises(ValueError, match=r'differ by \d\d\.\d%.*fuse only parts'):
        gp.fuse(net, x)
    assert list(net.state_dict()) == keys
    assert 0 < gp.fuse(randomise_norms(Tapped(1e-4)).to(dtype), x).folding.max_abs_diff < 0.1


class Wild(nn.Module):
    """Makes much of what float32 loses."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x):
        return (1e5 * self.layers(x)).sin()


class Drawn(Wild):
    """Draws its outputs."""

    def forward(self, x):
        return torch.randn_like(self.layers(x))


@pytest.mark.parametrize('net', [Wild, Drawn])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_rounding_does_is_reported(net, dtype, randomise_norms):
    fused = gp.fuse(randomise_norms(net()).to(dtype), X.to(dtype))
    assert fused.folding.folded == 1
    assert fused.folding.max_abs_diff > 0.01


def test_an_untrained_network_with_branches_is_not_refused():
    fused = gp.fuse(gp.GhostNetV3(0.5).eval(), torch.randn(1, 3, 32, 32))
    assert fused.folding.left == ()


class Asks(nn.Module):
    """Drops by a function, with the rate of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout(0.3)

    def forward(self, x):
        return nn.functional.dropout(self.conv(x), self.drop.p, self.training)


def test_the_rate_of_a_dropout_that_is_gone_can_be_read():
    assert gp.fuse(Asks().eval(), X).folding.max_abs_diff == 0
