import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.graph.channel_permutation import absorb_permutations, shortcut_ghosts


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


class Sum(nn.Module):
    """Outputs of several Ghost convs, added."""

    def __init__(self, *ghosts):
        super().__init__()
        self.ghosts, self.head = nn.ModuleList(ghosts), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        total = self.ghosts[0](x)
        for ghost in self.ghosts[1:]:
            total = total + ghost(x)
        return self.head(total)


def ghost(ratio, group_size=1, outputs=8):
    options = {'ratio': ratio, 'group_size': group_size, 'dw_size': 1, 'permuted': True}
    return gp.GhostConv2d(3, outputs, 1, **options)


@pytest.mark.parametrize(
    ('ghosts', 'alike'),
    [
        ([ghost(2), ghost(2), ghost(4)], [0, 1]),
        ([ghost(2), ghost(4), ghost(4)], [1, 2]),
        ([ghost(2), ghost(4)], []),
        ([ghost(2, 'all'), ghost(1.5, 'all'), ghost(2), ghost(2, 4)], [0, 1, 3]),
        ([ghost(3), ghost(3)], []),  # nine channels are computed, and eight returned
        ([ghost(1), ghost(1)], []),
    ],
)
def test_ghosts_of_a_shortcut_that_can_have_one_permutation(ghosts, alike):
    found = shortcut_ghosts(Sum(*ghosts).eval())
    assert found == ([[f'ghosts.{i}' for i in alike]] if alike else [])


def test_outputs_that_must_keep_their_order_share_none():
    assert shortcut_ghosts(nn.Sequential(Sum(ghost(2), ghost(2)).ghosts[0]).eval()) == []
    net = Sum(ghost(2), ghost(2))
    net.head = nn.Identity()
    assert shortcut_ghosts(net.eval()) == []
