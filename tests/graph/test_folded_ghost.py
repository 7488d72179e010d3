import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.graph.folded_ghost import FoldedGhostConv2d, fold_ghost, foldable_ghost


def test_shifted_ghosts_have_no_kernels_to_fold_into():
    assert foldable_ghost(gp.GhostConv2d(3, 8, 1))
    assert foldable_ghost(gp.GhostConv2d(3, 8, 1, ratio=1))
    assert not foldable_ghost(gp.GhostConv2d(3, 8, 1, cheap='shift'))
    assert not foldable_ghost(nn.Conv2d(3, 8, 1))


@pytest.mark.parametrize('padding_mode', ['zeros', 'circular'])
def test_a_shift_stays_a_step_only_where_cheap_kernels_see_zeros(padding_mode, randomise_norms):
    ghost = gp.GhostConv2d(3, 8, 3, padding=1, padding_mode=padding_mode).double()
    norm = randomise_norms(nn.BatchNorm2d(8).double())
    folded, rest, difference = fold_ghost(ghost.eval(), norm)
    assert isinstance(folded, FoldedGhostConv2d)
    assert (folded.shift is not None) == (padding_mode == 'zeros')
    assert difference < 1e-12
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(rest(folded(x)), norm(ghost(x)), rtol=1e-11, atol=1e-11)
