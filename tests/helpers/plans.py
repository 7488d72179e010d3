"""A network whose convs are of every size, its input, and layers of plans made by hand."""

import torch
from torch import nn

from ghost_plugin.conversion.cost_model import ConvSpec
from ghost_plugin.conversion.plan import ConversionPlan, LayerPlan


def images(number=2, size=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, size, size, generator=generator)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 15, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(15, 16, (1, 3), padding=(0, 1), dilation=(1, 1), bias=False),
        nn.Conv2d(16, 8, 3, padding=1, padding_mode='reflect'), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def layer(name, scores=None, *, reason='', ratio=2.0, channels=32, pixels=100):
    """A layer of a 3x3 conv."""
    return LayerPlan(
        name=name,
        decision='keep' if reason else 'convert',
        reason=reason,
        ratio=ratio,
        dw_size=3,
        cheap='depthwise',
        shape=ConvSpec(channels, channels, (3, 3), 1, False, pixels),
        scores=scores or {},
    )


def plan_of(*layers):
    """A plan of these layers alone."""
    costs = [each.shape.dense() for each in layers]
    params, macs = (sum(each) for each in zip(*costs, strict=True))
    return ConversionPlan('Net', 'abc', tuple(layers), params, macs)
