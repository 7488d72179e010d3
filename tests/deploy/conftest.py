"""Shared by the tests of deployment: small networks with trained-looking norms, some converted."""

import pytest
import torch
from helpers.nets import Residual

import ghost_plugin as gp
from ghost_plugin.utils import optional


@pytest.fixture(autouse=True)
def halves_of_any_size(monkeypatch):
    """Small networks have small maps."""
    monkeypatch.setattr('ghost_plugin.deploy.concat_elimination.lazy_concat.LEAST', 0)
    if optional.usable('onnx'):
        monkeypatch.setattr('ghost_plugin.deploy.concat_elimination.onnx_rewrite.LEAST', 0)


@pytest.fixture
def residual(randomise_norms):
    """The network above, not converted."""
    return randomise_norms(Residual())


@pytest.fixture
def converted(residual):
    """The network above, both convs of its block converted."""
    return gp.convert(residual, torch.randn(1, 3, 16, 16), keep_last=False)[0]
