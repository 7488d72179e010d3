"""The study of exported files: a figure where there is a file, otherwise the reason."""

import pytest

pytest.importorskip('timm')

import torch
from torch import nn

from ghost_plugin.deploy.export_formats import FORMATS


@pytest.fixture
def study():
    import export_parity

    return export_parity


def test_columns_are_formats_and_rows_are_networks_in_eval_mode(study):
    assert {suffix for suffix, _ in study.COLUMNS.values()} == {*FORMATS} - {'.pt'}
    torch.manual_seed(1)
    net = study.NETWORKS['ghostnet_plugin_050']()
    assert not net.training
    other = study.NETWORKS['ghostnet_plugin_050']()
    torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=0, atol=0)


class Random(nn.Module):
    """Never returns the same twice."""

    def forward(self, x):
        return x * torch.rand(1).item()


def test_a_difference_or_the_reason(study):
    assert 0 <= study.parity(nn.Conv2d(3, 4, 3).eval(), '.pt', {}) < 1e-5
    assert study.parity(Random().eval(), '.pt', {}).startswith('trace: ValueError: for input')
