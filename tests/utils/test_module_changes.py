import copy

import pytest
import torch
from torch import nn

from ghost_plugin.utils.module_changes import (
    apply_changes,
    find_changes,
    get_tensors,
    set_tensors,
)


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


def again(built, model):
    """A model from a new network, changes and tensors."""
    made = apply_changes(built, find_changes(copy.deepcopy(built), model))
    kept, others = get_tensors(model)
    set_tensors(made, {**kept, **others})
    return made.eval()


def test_an_unchanged_network_has_no_changes():
    assert find_changes(net(), net()) == []


def test_other_modules_sizes_and_children_come_back():
    model = net().eval()
    model[0] = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    model[1] = nn.Identity()
    model[3] = nn.Conv2d(5, 2, 1)
    model.append(nn.Sequential(nn.Flatten(), nn.Dropout(0.3)))
    made = again(net(), model)
    x = torch.randn(2, 3, 6, 6)
    assert str(made) == str(model)
    assert torch.equal(made(x), model.eval()(x))


def test_shared_parameters_stay_shared():
    built = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    built[1].weight = built[0].weight
    model = copy.deepcopy(built)
    nn.init.ones_(model[0].weight)
    made = again(built, model)
    assert made[0].weight is made[1].weight
    assert made[1].weight.eq(1).all()


def test_a_class_without_a_name_is_refused():
    class Local(nn.ReLU):
        pass

    model = net()
    model[2] = Local()
    with pytest.raises(ValueError, match='made at run time'):
        find_changes(net(), model)


def test_classes_of_other_packages_are_refused():
    with pytest.raises(ValueError, match='may appear in this model'):
        apply_changes(net(), [{'name': '2', 'class': 'mmcv.cnn:ConvModule'}])
