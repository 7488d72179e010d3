"""Values that init_weights sets on a dense conv reach the Ghost conv in its place."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab.initialization import init_weights


class Head(nn.Module):
    def __init__(self, permuted=False, group_size=1):
        super().__init__()
        options = {'permuted': permuted, 'group_size': group_size}
        self.conv = gp.GhostConv2d(4, 10, 3, bias=True, **options)

    def init_weights(self):
        nn.init.constant_(self.conv.weight, 0.5)
        nn.init.constant_(self.conv.bias, -2.0)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize('group_size', [1, 2, 'all'])
def test_weights_and_biases_are_taken_over(group_size):
    for permuted in (False, True):
        head = Head(permuted, group_size)
        if permuted:
            head.conv.order = torch.randperm(10)
        keys = list(head.state_dict())
        init_weights(head)
        assert list(head.state_dict()) == keys
        assert (head.conv.primary_conv.weight == 0.5).all()
        zero = head(torch.zeros(1, 4, 9, 9))[0, :, 3, 3]
        torch.testing.assert_close(zero, torch.full((10,), -2.0))


def test_parameters_that_are_not_set_stay(monkeypatch):
    monkeypatch.setattr(Head, 'init_weights', lambda self: None)
    head = Head()
    before = {name: p.clone() for name, p in head.state_dict().items()}
    init_weights(head)
    torch.testing.assert_close(dict(head.state_dict()), before, rtol=0, atol=0)
