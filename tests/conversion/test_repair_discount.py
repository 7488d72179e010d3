"""Scores of early convs, and how much of them counts."""

import pytest
import torch
from helpers.divergences import divergence_of_images
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import judging, repair_discount
from ghost_plugin.conversion.repair_discount import LEAST, UNMEASURED, USUAL, discounted

IMAGES = [torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    convs = [nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(5)]
    layers = [part for conv in convs for part in (conv, nn.BatchNorm2d(16), nn.ReLU())]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    net[-1].weight.data *= 200
    return net


def scores(plan):
    return [layer.scores for layer in plan.layers]


def measured(plan, model, images):
    converted = plan.apply(model, calibration=IMAGES)
    return float(divergence_of_images(model, converted, [images]).mean())


def test_each_conv_behind_takes_its_share(model):
    plan = gp.plan(model, IMAGES[0], macs=0.7, keep_first=False)
    found = discounted(plan, 0.1)
    for behind, (old, new) in enumerate(
        zip(reversed(scores(plan)), reversed(scores(found)), strict=True)
    ):
        assert new == pytest.approx({key: 0.9**behind * score for key, score in old.items()})
    assert scores(discounted(plan, 0)) == scores(plan)


def test_some_of_each_score_remains(model):
    plan = gp.plan(model, IMAGES[0], macs=0.7, keep_first=False)
    first = discounted(plan, 0.9).layers[0].scores
    assert first == pytest.approx({k: LEAST * score for k, score in plan.layers[0].scores.items()})


@pytest.mark.parametrize('best', range(3))
def test_the_share_with_the_least_divergence_is_taken(model, best, monkeypatch):
    seen = []

    def judged(self, plan):
        seen.append(plan)
        return torch.linspace(0.5, 1.5, 20) * (0.1 if len(seen) == best + 1 else 0.2)

    monkeypatch.setattr(judging.Judge, 'of_images', judged)
    monkeypatch.setattr(repair_discount, 'SHARES', (0.0, USUAL, 0.5))  # so that plans differ
    plan = gp.plan(model, IMAGES[0], macs=0.7, keep_first=False, calibration=IMAGES)
    assert len(seen) == 3
    assert seen[0] != seen[2]
    assert plan == seen[best]


def test_a_gain_within_chance_leaves_the_usual_share(model, monkeypatch):
    seen = []

    def judged(self, plan):
        seen.append(plan)
        return torch.linspace(0.1, 0.3, 20).roll(7 * len(seen)) - 0.001 * len(seen)

    monkeypatch.setattr(judging.Judge, 'of_images', judged)
    monkeypatch.setattr(repair_discount, 'SHARES', (0.0, USUAL, 0.5))
    plan = gp.plan(model, IMAGES[0], macs=0.7, keep_first=False, calibration=IMAGES)
    assert plan == seen[1]


def test_the_choice_is_not_worse_than_the_usual_share_on_new_images(model, monkeypatch):
    monkeypatch.setattr(repair_discount, 'SHARES', (0.0, USUAL, 0.5))
    new = torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    chosen = gp.plan(model, IMAGES[0], macs=0.7, keep_first=False, calibration=IMAGES)
    monkeypatch.setattr(repair_discount, 'SHARES', (USUAL,))
    usual = gp.plan(model, IMAGES[0], macs=0.7, keep_first=False, calibration=IMAGES)
    assert measured(chosen, model, new) <= 1.02 * measured(usual, model, new)


@pytest.mark.parametrize('budget', [{'macs': 0.7}, {'params': 0.7}])
def test_without_images_all_convs_count_alike(model, budget, monkeypatch):
    monkeypatch.setattr(repair_discount, 'discounted', lambda *args: pytest.fail('discounted'))
    gp.plan(model, IMAGES[0], keep_first=False, **budget)


def test_too_few_images_to_measure_leave_all_scores(model, monkeypatch):
    monkeypatch.setattr(judging.Judge, 'of_images', lambda *args: pytest.fail('measured'))
    used = []
    monkeypatch.setattr(
        repair_discount, 'discounted', lambda plan, share: used.append(share) or plan
    )
    gp.plan(model, IMAGES[0], macs=0.7, keep_first=False, calibration=IMAGES[:1])
    assert UNMEASURED in used


def test_images_of_several_sizes_are_not_measured(model, monkeypatch):
    monkeypatch.setattr(judging.Judge, 'of_images', lambda *args: pytest.fail('measured'))
    monkeypatch.setattr(repair_discount, 'SHARES', (0.0, USUAL, 0.5))
    sizes = [batch[..., : 16 - 2 * i] for i, batch in enumerate(IMAGES)]
    plan = gp.plan(model, IMAGES[0], macs=0.7, keep_first=False, calibration=sizes)
    assert any(layer.converts for layer in plan.layers)


def test_a_plan_is_the_same_every_time(model):
    first, second = (
        gp.plan(model, IMAGES[0], macs=0.6, keep_first=False, calibration=IMAGES) for _ in range(2)
    )
    assert first == second


def test_planning_leaves_the_model_alone(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gp.plan(model, IMAGES[0], macs=0.6, keep_first=False, calibration=IMAGES)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
