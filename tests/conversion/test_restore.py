"""Weights of another model are refused."""

import pytest
import torch
from torch import nn

from ghost_plugin.conversion.restore import load_exactly


def net(classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes))


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(net(4).state_dict(), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='2 of 9 tensors are missing or of another shape'):
        load_exactly(net(), tmp_path / 'w.pth')
    torch.save({**net().state_dict(), 'more': torch.zeros(1)}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='1 are unknown, such as more'):
        load_exactly(net(), tmp_path / 'w.pth')
