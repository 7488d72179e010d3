"""gp.plan and gp.convert as a whole: what they leave alone, refuse and return."""

import copy
import inspect

import pytest
import torch
from helpers.small import ALL, X, net, same
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.layer_latency import prepare_eager


@pytest.mark.parametrize('function', [gp.plan, gp.convert, gp.ConversionPlan.apply])
def test_every_argument_has_a_name(function):
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


def test_convert_takes_what_plan_and_apply_take():
    names = [
        set(inspect.signature(function).parameters)
        for function in (gp.convert, gp.plan, gp.ConversionPlan.apply)
    ]
    assert names[0] == names[1] | names[2] - {'self'}


def test_a_list_is_a_tuple_of_arguments():
    assert gp.plan(net(), [X], **ALL) == gp.plan(net(), (X,), **ALL)


def test_convert_returns_the_plan_with_errors():
    _, plan = gp.convert(net(), X, **ALL)
    assert all(layer.error >= 0 for layer in plan.layers if layer.converts)


@pytest.mark.parametrize('backend', ['fused', prepare_eager])
def test_a_backend_without_a_budget_of_time_is_refused(backend):
    with pytest.raises(ValueError, match='no latency was given'):
        gp.plan(net(), X, macs=0.8, latency_backend=backend)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"latency_backend must be one of .*got 'tpu'"):
        gp.plan(net(), X, latency=0.9, latency_backend='tpu')


def test_the_old_name_of_a_backend_warns():
    with (
        pytest.warns(FutureWarning, match='use latency_backend='),
        pytest.raises(ValueError, match='no latency was given'),
    ):
        gp.plan(net(), X, ready=prepare_eager)


def test_a_budget_on_no_images_is_refused():
    with pytest.raises(ValueError, match='holds no batch; leave it out'):
        gp.plan(net(), X, macs=0.8, calibration=[])


def test_same_seed_same_plan():
    model = net()
    assert gp.plan(model, X, macs=0.9, seed=3, **ALL) == gp.plan(model, X, macs=0.9, seed=3, **ALL)


def test_convs_whose_ghosts_would_save_nothing_stay_under_a_budget():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 3))
    plan = gp.plan(model.eval(), X, macs=0.9, **ALL)
    assert [layer.reason for layer in plan.layers][1] == 'no_gain'


def test_planning_leaves_nothing_behind():
    model = net().train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gp.plan(model, X, macs=0.9, **ALL)
    assert torch.equal(torch.get_rng_state(), random)
    assert same(model.state_dict(), state)
    assert all(m.training for m in model.modules())
    assert {type(m) for m in model[:1]} == {nn.Conv2d}
    assert not any(v for m in model.modules() for k, v in vars(m).items() if k.endswith('_hooks'))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
