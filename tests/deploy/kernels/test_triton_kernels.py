"""Limits and block sizes of the Triton kernels."""

import pytest
import torch

pytest.importorskip('triton')
if not hasattr(torch.library, 'triton_op'):
    pytest.skip('needs torch 2.6', allow_module_level=True)
from torch import nn

from ghost_plugin.deploy.kernels import triton_kernels, triton_modules


def test_maps_too_large_for_32_bits_are_refused(monkeypatch):
    monkeypatch.setattr(triton_kernels, '_MAX_ELEMENTS', 100)
    form = next(triton_modules.candidates(nn.Conv2d(4, 4, 3, padding=1, groups=4)))
    with pytest.raises(ValueError, match='101 elements or more are not supported'):
        form(torch.randn(1, 4, 6, 6))


def test_a_tile_leaves_few_maps_unused():
    assert [triton_kernels._block(maps, 16) for maps in (1, 12, 36, 60, 480)] == [
        16,
        16,
        16,
        64,
        64,
    ]
    assert triton_kernels._block(8, 8) == 8
