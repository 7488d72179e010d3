"""Budgets of published networks."""

import pytest
import torch

import ghost_plugin as gp
from ghost_plugin.conversion.variants import RATIOS


def _smallest_step(row, what):
    """What the next lower ratio would give back."""
    here = row.costs[f'{what}_after']
    lower = [ratio for ratio in (1, *RATIOS) if ratio < row.ratio or not row.converts]
    settings = {**row.settings, 'ratio': max(lower, default=1)}
    place = {'params': 0, 'macs': 1}[what]
    more = row.shape.dense() if settings['ratio'] == 1 else row.shape.ghost(settings)
    return max(0, more[place] - here)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    ['resnet18', 'resnet50', 'resnext50_32x4d', 'seresnet50', 'res2net50_26w_4s', 'regnetx_032',
     'regnety_008', 'densenet121', 'mobilenetv2_100', 'mobilenetv3_large_100', 'efficientnet_b0',
     'tf_efficientnet_lite0', 'mnasnet_100', 'vgg11_bn', 'dla34', 'hrnet_w18_small', 'cspdarknet53',
     'inception_v3', 'repvgg_a0', 'resnetv2_50'],
)  # fmt: skip
def test_budgets_of_timm_networks(name):
    timm = pytest.importorskip('timm')
    network = timm.create_model(name).eval()
    example = torch.randn(1, 3, 128, 128)
    first = gp.plan(network, example, macs=0.95)
    for share in (0.9, 0.8, 0.7):
        plan = first.rebudget(macs=share)
        reached = plan.totals['macs_after'] / plan.totals['macs_before']
        step = max(_smallest_step(row, 'macs') for row in plan.layers) / plan.macs
        assert reached <= share
        assert share - reached <= max(0.01, step)
