import pytest
import torch
from torch import nn

from ghost_plugin.layers.cheap_ops import CHEAP, NEIGHBOURS, Shift, build_cheap, check_dw_size


def test_shift_moves_channels_to_the_eight_neighbours_in_turn():
    x = torch.randn(1, 10, 5, 6)
    out = Shift(1)(x)
    for channel in range(10):
        down, right = NEIGHBOURS[channel % 8]
        moved = torch.roll(x[0, channel], (down, right), (0, 1))
        if down:
            moved[0 if down > 0 else -1] = 0
        if right:
            moved[:, 0 if right > 0 else -1] = 0
        torch.testing.assert_close(out[0, channel], moved)


@pytest.mark.parametrize('kind', CHEAP)
@pytest.mark.parametrize('copies', [1, 3])
def test_ghost_channels_are_computed_from_the_primary_channel_of_their_group(kind, copies):
    cheap, x = build_cheap(kind, 4, copies, bias=False), torch.randn(1, 4, 6, 6)
    changed = x.clone()
    changed[:, 2] += 1
    differs = (cheap(x) != cheap(changed)).flatten(2).any(2)[0]
    assert differs.nonzero().flatten().tolist() == [*range(2 * copies, 3 * copies)]


def test_without_ghosts_there_is_a_placeholder():
    assert isinstance(build_cheap('depthwise', 4, 0), nn.Identity)


@pytest.mark.parametrize(('size', 'error'), [(2, ValueError), (0, ValueError), (True, TypeError)])
def test_bad_sizes_raise(size, error):
    with pytest.raises(error, match='odd'):
        check_dw_size(size)
