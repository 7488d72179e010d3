"""Scores of ratios."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import sensitivity
from ghost_plugin.conversion.sensitivity import MIN_COUNTED, POWER, _scores, score
from ghost_plugin.conversion.variants import Variant


def noise(number):
    return torch.randn(number, 3, 24, 24, generator=torch.Generator().manual_seed(number))


def block(channels, out):
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out),
                         nn.ReLU())  # fmt: skip


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    sizes = [(3, 16), (16, 32), (32, 32), (32, 48), (48, 64)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*(block(*size) for size in sizes), *head).eval()


@pytest.fixture(scope='module')
def scored(model):
    return gp.plan(model, noise(2), macs=0.9, dw_size=3, keep_last=False, calibration=[noise(8)])


def test_scores_rise_with_the_ratio_and_are_saved(scored, tmp_path):
    scored.save(tmp_path / 'plan.json')
    again = gp.ConversionPlan.load(tmp_path / 'plan.json')
    for row in again.layers[1:]:
        scores = [row.scores[ratio] for ratio in sorted(row.scores, key=float)]
        assert len(scores) > 3 and scores == sorted(scores) and scores[0] > 0
    assert again.rebudget(macs=0.6) == scored.rebudget(macs=0.6)


def scores_and_changes(model, number, scale):
    """The score of each conv at ratio 2, and what its Ghost changes in the output once fitted."""
    model = copy.deepcopy(model)
    with torch.no_grad():  # nearly redundant channels, and ones that the next conv hardly reads
        model[2][0].weight[:] = model[2][0].weight[:8].repeat(4, 1, 1, 1) + model[2][0].weight / 4
        model[4][0].weight[:, :24] /= 4
    coarse = torch.randn(number, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, scale_factor=scale, mode='bilinear')
    plan = gp.plan(model, images[:2], macs=0.9, dw_size=3, keep_last=False, calibration=[images])
    changes = []
    for layer in plan.layers[1:]:
        alone = plan
        for other in plan.layers:
            decision = 'convert' if other.name == layer.name else 'keep'
            alone = alone.replace_layer(other.name, decision=decision, ratio=2.0)
        converted = alone.apply(model, calibration=[images], repair=False)
        changes.append(float((converted(images) - model(images)).detach().square().mean()))
    return [layer.scores['2'] for layer in plan.layers[1:]], changes


def test_scores_find_the_convs_that_change_the_output_least_and_most(model):
    scores, changes = scores_and_changes(model, number=40, scale=2)
    assert scores.index(min(scores)) == changes.index(min(changes))
    assert scores.index(max(scores)) == changes.index(max(changes))


@pytest.mark.slow
def test_scores_order_convs_by_what_they_change_once_fitted(model):
    scores, changes = scores_and_changes(model, number=96, scale=4)
    assert sorted(range(4), key=scores.__getitem__) == sorted(range(4), key=changes.__getitem__)


def test_a_ratio_that_was_asked_for_stays(model):
    plan = gp.plan(model, noise(2), macs=0.8, include={'*': {}, '2.0': {'ratio': 3}})
    row = next(row for row in plan.layers if row.name == '2.0')
    assert set(row.scores) == {'3'}
    assert row.ratio == 3 or row.reason == 'budget'


def test_a_score_is_the_error_to_a_power_and_never_falls():
    scores = _scores({Variant(1.5): 0.1, Variant(2.0): 0.4, Variant(3.0): 0.3}, 0.5, 10.0)
    assert scores == pytest.approx(
        {'1.5': 10 * 0.05**POWER, '2': 10 * 0.2**POWER, '3': 10 * 0.2**POWER}
    )


def test_layers_without_ratios_stay_as_they_are(model):
    plan = gp.plan(model, noise(2))
    layers = score(model, plan.layers, {'2.0': [Variant(2.0)]}, noise(2), None, 0)
    for before, after in zip(plan.layers, layers, strict=True):
        assert list(after.scores) == (['2'] if after.name == '2.0' else [])
        assert replace(after, scores={}) == before


def scores_where_each_conv_takes_back(share, model, calibration, monkeypatch):
    monkeypatch.setattr(sensitivity, 'TAKEN_BACK', share)
    plan = gp.plan(
        model, noise(2), macs=0.9, keep_first=False, keep_last=False, calibration=calibration
    )
    return [layer.scores for layer in plan.layers]


@pytest.mark.parametrize(('share', 'least'), [(0.1, 0), (0.9, MIN_COUNTED)])
def test_each_conv_behind_takes_a_share_back(model, share, least, monkeypatch):
    images = [noise(8)]
    plain = scores_where_each_conv_takes_back(0, model, images, monkeypatch)
    found = scores_where_each_conv_takes_back(share, model, images, monkeypatch)
    for behind, (before, after) in enumerate(zip(plain[::-1], found[::-1], strict=True)):
        counted = max(least, (1 - share) ** behind)
        assert after == pytest.approx({key: counted * score for key, score in before.items()})


def test_without_images_all_convs_count_alike(model, monkeypatch):
    plain, found = (
        scores_where_each_conv_takes_back(share, model, None, monkeypatch) for share in (0, 0.5)
    )
    assert plain == found
