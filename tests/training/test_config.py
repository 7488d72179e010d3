"""Recipes, optimizers and schedules."""

import pytest
from torch import nn

pytest.importorskip('timm')

from ghost_plugin.training.config import OPTIMIZERS, Recipe, create_optimizer, create_schedule


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    'wrong', [{'epochs': 0}, {'optimizer': 'adam'}, {'ema': 1.0}, {'batch': 0}], ids=str
)
def test_bad_recipes(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


def rates(steps, warmup):
    optimizer = create_optimizer(net(), Recipe(lr=2.0))
    schedule, found = create_schedule(optimizer, steps, warmup), []
    for step in range(steps):
        schedule.step_update(step)
        assert len({group['lr'] for group in optimizer.param_groups}) == 1
        found.append(optimizer.param_groups[0]['lr'] / 2)
    return found


def test_learning_rate_rises_and_falls(caplog):
    found = rates(100, 0.1)
    assert found.index(max(found)) == 10 and max(found) == 1
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert found[10:] == sorted(found[10:], reverse=True)
    assert 0 < found[-1] < 0.01 and rates(1, 0.05) == [1]
    assert not caplog.records


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimizers_have_their_defaults(name):
    optimizer = create_optimizer(net(), Recipe(optimizer=name))
    assert type(optimizer).__name__.lower() == name
    lr, weight_decay = OPTIMIZERS[name]
    assert optimizer.defaults['lr'] == lr
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0, weight_decay}
    if name == 'sgd':
        assert optimizer.defaults['momentum'] == 0.9 and optimizer.defaults['nesterov']


def test_norms_and_biases_do_not_decay():
    model = net()
    model[0].weight.requires_grad_(False)
    groups = create_optimizer(model, Recipe(weight_decay=0.3)).param_groups
    decays = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    assert {name: decays.get(id(p)) for name, p in model.named_parameters()} == {
        '0.weight': None, '0.bias': 0, '1.weight': 0, '1.bias': 0, '3.weight': 0.3, '3.bias': 0,
    }  # fmt: skip
