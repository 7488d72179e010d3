import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.graph.channel_permutation import absorb_permutations


def permuted(inputs, outputs):
    conv = gp.GhostConv2d(inputs, outputs, 1, permuted=True)
    conv.order = torch.randperm(outputs)
    return conv


class Head(nn.Module):
    """A mean over some axes in front of a linear layer."""

    def __init__(self, axes):
        super().__init__()
        self.conv, self.fc, self.axes = permuted(3, 8), nn.Linear(8, 2), axes

    def forward(self, x):
        return self.fc(self.conv(x).mean(self.axes))


@pytest.mark.parametrize(
    ('axes', 'absorbed'),
    [((2, 3), 1), ((-1, -2), 1), ([3, 2], 1), ((1, 2), 0), ((0, 2), 0)],
)
def test_only_means_over_pixels_keep_channels_apart(axes, absorbed):
    net, x = Head(axes).eval(), torch.randn(8, 3, 8, 8)
    want = net(x)
    assert absorb_permutations(net) == absorbed
    torch.testing.assert_close(net(x), want)


def test_a_permutation_goes_into_norm_depthwise_conv_and_consumer(randomise_norms):
    net = randomise_norms(
        nn.Sequential(
            permuted(3, 8), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)
        )
    )
    x = torch.randn(2, 3, 5, 5)
    want = net(x)
    assert absorb_permutations(net) == 1
    assert net[0].order is None
    torch.testing.assert_close(net(x), want)


def test_a_permutation_whose_channels_are_returned_stays():
    net = nn.Sequential(permuted(3, 8), nn.ReLU()).eval()
    assert absorb_permutations(net) == 0
    assert net[0].order is not None


def test_an_identity_is_dropped_without_a_neighbour():
    net = nn.Sequential(gp.GhostConv2d(3, 8, 1, permuted=True)).eval()
    assert absorb_permutations(net) == 1
    assert net[0].order is None
