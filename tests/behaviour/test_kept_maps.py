"""Networks that keep activations of their last call, as optical flow and attention do."""

import copy

import pytest
import torch
from torch import nn

import ghost_plugin as gp


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, 10, 3)
        self.kept = []

    def forward(self, x):
        self.kept = [self.body(self.stem(x))]
        return self.head(self.kept[0]).mean((2, 3))


@pytest.mark.parametrize('options', [{}, {'macs': 0.8}, {'macs': 0.8, 'reconstruct': 'block'}])
def test_activations_kept_with_gradients_do_not_hinder_and_none_are_left(options):
    model = Keeping().eval()
    model(torch.rand(1, 3, 16, 16))
    images = [torch.rand(8, 3, 16, 16)]
    converted, _ = gp.convert(model, images[0][:1], calibration=images, **options)
    assert isinstance(converted.body[0], gp.GhostConv2d)
    for net in (converted, *([model] if 'macs' in options else [])):
        assert not net.kept[0].requires_grad
        copy.deepcopy(net)
