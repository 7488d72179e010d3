import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.layers.attention import SqueezeExcite


@pytest.mark.parametrize('width', [0.5, 1.0])
@pytest.mark.parametrize('output_stride', [8, 16, 32])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3, 4), (2, 4), (1, 5), (5,)])
def test_features_are_the_published_ones(width, output_stride, out_indices):
    net = gp.GhostNet(width, out_indices=out_indices, output_stride=output_stride).eval()
    maps = net(torch.randn(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == gp.out_channels('GhostNet', out_indices, width)
    assert net.out_channels == gp.out_channels('GhostNet', out_indices, width)
    assert [64 // m.shape[2] for m in maps] == gp.out_strides(
        'GhostNet', out_indices, output_stride
    )


def test_trunk_is_whole_and_nothing_more_is_built():
    assert sum(p.numel() for p in gp.GhostNet(out_indices=(0, 1, 2, 3, 4)).parameters()) == 2515908
    assert len(gp.GhostNet(out_indices=(1, 2)).blocks) == 5


@pytest.mark.parametrize('output_stride', [8, 16])
def test_dilated_net_holds_the_strided_one(output_stride, randomise_norms):
    """Without squeeze-excite, whose mean sees more pixels, every k-th pixel is the same."""
    strided = randomise_norms(gp.GhostNet(0.5, out_indices=(4,)).double())
    dilated = gp.GhostNet(0.5, out_indices=(4,), output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    for net in (strided, dilated):
        for block in net.modules():
            if isinstance(getattr(block, 'se', None), SqueezeExcite):
                block.se = nn.Identity()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    step = 32 // output_stride
    torch.testing.assert_close(dilated(x)[0][..., ::step, ::step], strided(x)[0])


@pytest.mark.parametrize(
    'options, error',
    [
        ({'width': -1}, ValueError),
        ({'width': True}, TypeError),
        ({'in_channels': 0}, ValueError),
        ({'out_indices': (1, 6)}, ValueError),
        ({'output_stride': 24}, ValueError),
        ({'drop_path_rate': 1.0}, ValueError),
    ],
)
def test_bad_values_raise(options, error):
    with pytest.raises(error, match=str(next(iter(options)))):
        gp.GhostNet(**options)
