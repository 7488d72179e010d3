"""Shared by all tests: the seed, pictures, trained-looking norms, data that only CI has."""

from pathlib import Path

import pytest
import torch
from torch import nn

SHARED = Path(__file__).parents[2] / 'shared'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def shared():
    """Folder of reference data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip('needs ../shared, which only the developers and CI have')
    return SHARED


@pytest.fixture
def randomise_norms():
    """Give norms the statistics of a trained net, so that a lost one shows."""

    def randomise(model: nn.Module) -> nn.Module:
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_mean, -0.3, 0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2)
                nn.init.uniform_(norm.weight, 0.3, 0.8)
                nn.init.uniform_(norm.bias, -0.3, 0.3)
        return model.eval()

    return randomise


@pytest.fixture
def assert_equal_maps():
    """Compare tensors against the largest value in each, as deep random nets grow theirs."""

    def compare(got, want, tolerance: float) -> None:
        got, want = ([maps] if isinstance(maps, torch.Tensor) else maps for maps in (got, want))
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * b.abs().max()

    return compare
