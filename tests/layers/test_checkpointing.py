import copy

import torch
from torch import nn

from ghost_plugin.layers.checkpointing import checkpointed


def test_values_gradients_and_statistics_are_those_of_the_plain_call():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    other, x = copy.deepcopy(plain), torch.randn(2, 3, 8, 8)
    plain(x).square().mean().backward()
    checkpointed(other, x).square().mean().backward()
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(plain.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)
