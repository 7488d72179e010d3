import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.backbones.common import Parts
from ghost_plugin.backbones.g_ghost_regnet import GhostStage
from ghost_plugin.specs import G_GHOST


@pytest.mark.parametrize(
    'arch', [pytest.param(a, marks=pytest.mark.slow if a > '004' else ()) for a in G_GHOST]
)
def test_every_size_trains_on_one_image(arch):
    net = gp.GGhostRegNet(arch, out_indices=(0, 1, 2, 3, 4))
    features = net(torch.randn(1, 3, 64, 64))
    channels = gp.out_channels('GGhostRegNet', range(5), arch=arch)
    assert [f.shape[1] for f in features] == net.out_channels == channels
    sum(f.square().mean() for f in features).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_stage_divides_its_channels():
    stage = GhostStage(8, 24, 3, 8, 0.5, Parts(), 2, (1, 1), [0.0] * 3)
    assert stage.layers[0].conv1.in_channels + stage.cheap[0].in_channels == 24
    assert stage(torch.randn(2, 8, 8, 8)).shape == (2, 24, 4, 4)
    with pytest.raises(ValueError, match=r'cheap_ratio 0\.9 leaves 0 of 24 channels'):
        GhostStage(8, 24, 3, 8, 0.9, Parts(), 2, (1, 1), [0.0] * 3)


def test_stages_behind_the_deepest_level_are_not_built():
    net = gp.GGhostRegNet('002', out_indices=(1,))
    assert [name for name, _ in net.named_children()] == ['conv1', 'bn1', 'relu', 'layer1']
    assert isinstance(net.layer1, nn.Sequential)  # too few blocks for a ghost stage
