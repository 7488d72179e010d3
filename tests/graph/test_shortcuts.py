"""What is added to the outputs of convs: which shortcuts are known in time, and their values."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ghost_plugin.graph.shortcuts import find_shortcuts


class Block(nn.Module):
    """``forward`` is what a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.conv = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.drop, self.scale = nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 1)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def found(forward, norm='norm'):
    return find_shortcuts(Block(forward).eval(), {'conv': norm}).get('conv')


def test_the_shortcut_of_a_residual_block_is_known_at_its_first_conv():
    shortcut = found(lambda m, x: x + m.drop(m.norm(m.conv(m.first(x)))))
    assert (shortcut.source, shortcut.is_input, shortcut.steps) == ('first', True, ())


def test_steps_without_weights_lead_from_a_source_to_the_addition():
    def forward(m, x):
        return m.norm(m.conv(m.first(x))) + F.pad(x[:, 1:], (0, 0, 0, 0, 1, 0)).relu()

    x = torch.randn(2, 4, 3, 3)
    wanted = x.clone().relu()
    wanted[:, 0] = 0
    assert torch.equal(found(forward).compute(x), wanted)


@pytest.mark.parametrize(
    'forward',
    [
        pytest.param(lambda m, x: x + m.norm(m.conv(m.first(x))).relu(), id='activation'),
        pytest.param(lambda m, x: x + m.scale(m.norm(m.conv(m.first(x)))), id='another conv'),
        pytest.param(lambda m, x: m.norm(m.conv(m.first(x))) + m.scale(x), id='a later conv'),
        pytest.param(lambda m, x: torch.add(m.norm(m.conv(x)), x, alpha=2), id='a factor'),
        pytest.param(lambda m, x: m.norm(m.conv(x)) + 1, id='a number'),
        pytest.param(lambda m, x: x + m.conv(m.first(x)), id='no norm where one is expected'),
    ],
)
def test_other_sums_have_no_shortcut(forward):
    assert found(forward) is None


def test_a_conv_without_a_norm_and_its_own_input():
    assert found(lambda m, x: m.conv(x) + x, norm='').source == 'conv'


def test_an_input_that_is_written_into_is_read_behind_that():
    def forward(m, x):
        y = m.norm(m.conv(m.first(F.relu_(x.sub_(1)))))
        return x + y

    shortcut = found(forward)
    assert (shortcut.source, shortcut.is_input, shortcut.steps) == ('first', True, ())


def test_steps_in_place_leave_their_source():
    x = torch.randn(2, 4, 3, 3)
    shortcut = found(lambda m, x: m.norm(m.conv(m.first(x))) + x[:].mul_(2))
    before = x.clone()
    assert torch.equal(shortcut.compute(x), 2 * before)
    assert torch.equal(x, before)


def test_of_two_branches_with_convs_the_later_one_knows_the_other():
    net = torchvision.models.resnet18().eval()
    norms = {name: name.replace('conv', 'bn') for name in ('layer2.0.conv2', 'layer2.1.conv2')}
    shortcuts = find_shortcuts(net, norms | {'layer2.0.downsample.0': 'layer2.0.downsample.1'})
    assert {name: shortcut.source for name, shortcut in shortcuts.items()} == {
        'layer2.0.downsample.0': 'layer2.0.bn2', 'layer2.1.conv2': 'layer2.1.conv1'
    }  # fmt: skip
