"""Variants of a Ghost: their keys, their settings, and which ones a budget tries."""

import itertools

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.cost_model import ConvSpec
from ghost_plugin.conversion.variants import RATIOS, Variant, automatic_variants

OWN = {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise', 'group_size': 1}


@pytest.mark.parametrize(
    'variant, key',
    [
        (Variant(1.25), '1.25'),
        (Variant(2.0, 1), '2 dw_size=1'),
        (Variant(1.0625, 1, 'all'), '1.0625 dw_size=1 group_size=all'),
        (Variant(4.0, None, 8), '4 group_size=8'),
    ],
)
def test_keys_are_read_back(variant, key):
    assert variant.key == key
    assert Variant.from_key(key) == variant


def test_settings_are_those_of_the_layer_where_none_are_given():
    assert Variant(1.5).settings(OWN) == {**OWN, 'ratio': 1.5}
    assert Variant(1.5, 1, 4).settings(OWN) == {**OWN, 'ratio': 1.5, 'dw_size': 1, 'group_size': 4}


def test_kernels_of_one_pixel_follow_1x1_convs():
    sizes = {
        size: {v.dw_size for v in automatic_variants(ConvSpec(8, 8, (size, size), 1, False, 9))
               if v.group_size == 1}
        for size in (1, 3)
    }  # fmt: skip
    assert sizes == {1: {1}, 3: {3}}
    ratios = [v.ratio for v in automatic_variants(ConvSpec(8, 8, (1, 1), 1, False, 9))]
    assert ratios[: len(RATIOS)] == list(RATIOS)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU(),
        nn.Conv2d(96, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


def test_a_budget_mixes_primary_channels_where_that_loses_less(model, tmp_path):
    images = torch.randn(32, 3, 16, 16)
    plan = gp.plan(model, images[:1], macs=0.85, calibration=[images], keep_last=False)
    converted = [layer for layer in plan.layers if layer.converts]
    assert {layer.group_size for layer in converted} - {1}
    assert plan.totals['macs_after'] <= 0.85 * plan.macs
    plan.save(tmp_path / 'plan.json')
    loaded = gp.ConversionPlan.load(tmp_path / 'plan.json')
    assert loaded == plan
    assert loaded.rebudget(macs=0.85).layers == plan.layers
    net = plan.apply(model, calibration=[images])
    assert gp.count(net, images[:1]).macs == plan.totals['macs_after']


def test_a_second_budget_does_not_undo_the_first(model):
    torch.manual_seed(0)
    wide = [nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)]
    deeper = nn.Sequential(*model[:9], *wide, *head).eval()
    images = torch.randn(16, 3, 16, 16)
    plan = gp.plan(deeper, images[:1], macs=0.7, calibration=[images], keep_last=False)
    shares = (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
    for macs, params in itertools.product(shares, shares):
        both = plan.rebudget(macs=macs, params=params).totals
        assert both['macs_after'] <= macs * both['macs_before']
        assert both['params_after'] <= params * both['params_before']


def test_given_settings_are_not_changed_by_a_budget(model):
    images = torch.randn(8, 3, 16, 16)
    for given in ({'dw_size': 3}, {'group_size': 2}, {'include': {'*': {'dw_size': 5}}}):
        plan = gp.plan(model, images[:1], macs=0.9, keep_last=False, **given)
        for layer in plan.layers:
            if layer.converts:
                wanted = given.get('include', {}).get('*', given)
                assert all(getattr(layer, key) == value for key, value in wanted.items())


def test_without_a_budget_settings_are_those_of_the_paper(model):
    plan = gp.plan(model, torch.randn(1, 3, 16, 16))
    assert {(layer.dw_size, layer.group_size) for layer in plan.layers} == {(3, 1)}
