import pytest
import torch

from ghost_plugin.backbones.bottlenecks import GhostBottleneck, GhostBottleneckV3
from ghost_plugin.backbones.common import Parts
from ghost_plugin.specs import GHOSTNET_V2, layout

BLOCKS = [block for stage in layout(GHOSTNET_V2, 0.35).stages for block in stage]


@pytest.mark.parametrize('kind', [GhostBottleneck, GhostBottleneckV3])
@pytest.mark.parametrize('block', BLOCKS[:4], ids=lambda block: str(block.out_channels))
def test_shapes_and_variance_of_initial_weights(kind, block):
    bottleneck = kind(block, Parts())
    mean_square = bottleneck.initialize(1.0)
    x = torch.randn(8, block.in_channels, 16, 16)
    out = bottleneck.eval()(x)
    assert out.shape == (8, block.out_channels, 16 // block.stride, 16 // block.stride)
    assert 0.3 < out.square().mean() / mean_square < 3


def test_v3_merges_depthwise_branches_only():
    with pytest.raises(ValueError, match="cheap must be 'depthwise'"):
        GhostBottleneckV3(BLOCKS[0], Parts(cheap='shift'))
    with pytest.raises(ValueError, match='group_size must be 1, got 4'):
        GhostBottleneckV3(BLOCKS[0], Parts(group_size=4))
