"""Dynamic axes of small models."""

import pytest
import torch
from torch import nn

from ghost_plugin.deploy.flat_io import TensorIO
from ghost_plugin.deploy.free_axes import find_free_axes


def found(model, x, dynamic=True):
    return find_free_axes(TensorIO(model.eval(), x), [x], dynamic, ['x'], ['y'])


def test_batch_and_image_size_of_a_conv():
    free = found(nn.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8))
    assert free.inputs == {'x': {0: 'batch', 2: 'height', 3: 'width'}}
    assert free.outputs == {'y': {0: 'batch', 2: 'y_height', 3: 'y_width'}}
    assert not free.refused
    assert free.traced[0].shape == (2, 3, 224, 224)


def test_fewer_axes_on_request():
    x = torch.ones(1, 3, 8, 8)
    assert found(nn.Conv2d(3, 4, 3), x, 'batch').inputs == {'x': {0: 'batch'}}
    assert found(nn.Conv2d(3, 4, 3), x, False).inputs == {'x': {}}
    with pytest.raises(ValueError, match="no other size than the example's; give dynamic='batch'"):
        found(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), x)
