import pytest
import torch
from torch import nn

from ghost_plugin.backbones.common import Stages, depthwise_norm, drop_path_rates


def test_rates_rise_linearly():
    assert drop_path_rates(0.2, 3) == pytest.approx([0.0, 0.1, 0.2])
    assert drop_path_rates(0.2, 1) == [0.0]


def test_stages_return_their_taps_and_stop_at_the_depth():
    stages = Stages(*(nn.Conv2d(1, 1, 1) for _ in range(3)))
    x = torch.ones(1, 1, 2, 2)
    last, features = stages.run(x, [0, 1], 2, 2)
    assert torch.equal(features[0], stages[0](x))
    assert torch.equal(last, features[1])


@pytest.mark.parametrize(('kernel', 'stride', 'dilation'), [(3, 1, 1), (5, 2, 1), (3, 1, 2)])
def test_depthwise_convs_keep_the_size_up_to_the_stride(kernel, stride, dilation):
    conv, norm = depthwise_norm(4, kernel, stride, dilation, nn.BatchNorm2d)
    assert norm(conv(torch.randn(2, 4, 8, 8))).shape == (2, 4, 8 // stride, 8 // stride)
