"""Shared by the tests of deployment: small networks with trained-looking norms, some converted."""

import pytest
import torch
from helpers.nets import Residual

import ghost_plugin as gp


@pytest.fixture
def residual(randomise_norms):
    """The network above, not converted."""
    return randomise_norms(Residual())


@pytest.fixture
def converted(residual):
    """The network above, both convs of its block converted."""
    return gp.convert(residual, torch.randn(1, 3, 16, 16), keep_last=False)[0]
