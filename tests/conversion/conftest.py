"""Convs whose maps really are copies of each other, so that a right conversion loses nothing."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp


@pytest.fixture
def redundant():
    """Make the second half of a conv's filters multiples of the first, in random order."""

    def make(conv: nn.Conv2d) -> nn.Conv2d:
        half, groups = conv.out_channels // 2, conv.groups
        scale = torch.linspace(0.5, 1.5, half // groups)
        with torch.no_grad():
            for part in conv.weight.chunk(groups):
                order = torch.randperm(half // groups)
                part[half // groups :] = (part[: half // groups] * scale[:, None, None, None])[
                    order
                ]
        return conv

    return make


@pytest.fixture
def assert_lossless():
    """Convert all of a redundant network; its outputs stay, and so do its kinds of layer."""

    def check(model: nn.Module, x, **options) -> nn.Module:
        model = model.eval()
        options = {'keep_first': False, 'keep_last': False, **options}
        converted, plan = gp.convert(model, x, **options)
        assert {row.decision for row in plan.rows} == {'convert'}, plan.report()
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)
        return converted

    return check
