"""What a plan takes as a model and what it refuses; errors and second times change nothing."""

import copy
import logging

import pytest
import torch
import torch.distributed as dist
from helpers.small import ALL, X, net, same
from torch import nn

import ghost_plugin as gp


def test_a_model_on_meta_converts_and_takes_weights_later():
    with torch.device('meta'):
        model = net()
        x = torch.empty_like(X, device='meta')
    converted, plan = gp.convert(model, x, **ALL)
    assert all(p.is_meta for p in converted.parameters())
    real, _ = gp.convert(net(), X, **ALL)
    converted.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(converted(X), real(X))
    with pytest.raises(ValueError, match='meta'):
        plan.apply(model, calibration=[x])


def test_a_bare_conv_is_a_model_too():
    conv, x = nn.Conv2d(8, 16, 3), torch.randn(2, 8, 9, 9)
    converted, plan = gp.convert(conv, x, **ALL)
    assert isinstance(converted, gp.GhostConv2d)
    assert plan.layers[0].name == ''
    assert isinstance(plan.apply(conv, inplace=True, calibration=[x]), gp.GhostConv2d)
    assert plan.apply(converted) is converted


def test_lazy_modules_are_refused_before_they_wake():
    model = nn.Sequential(nn.LazyConv2d(16, 3))
    with pytest.raises(ValueError, match=r'lazy.*call the model once'):
        gp.plan(model, X)
    assert isinstance(model[0], nn.LazyConv2d)


class Renamed(nn.DataParallel):
    """As MMEngine's wrappers, which inherit from PyTorch's."""


@pytest.mark.parametrize(
    'wrap, said',
    [
        (nn.DataParallel, r'give model\.module'),
        (Renamed, r'give model\.module'),
        (lambda m: torch.compile(m, backend='eager'), r'model\._orig_mod, and compile afterwards'),
        (torch.jit.script, 'before it was scripted'),
        (lambda m: torch.jit.trace(m, X), 'before it was scripted'),
        (lambda m: 'resnet18', 'must be a torch.nn.Module'),
    ],
    ids=['DataParallel', 'subclass', 'compiled', 'scripted', 'traced', 'name'],
)
def test_wrapped_roots_are_refused_with_advice(wrap, said):
    wrapped, plan = wrap(net()), gp.plan(net(), X)
    with pytest.raises(TypeError, match=said):
        gp.plan(wrapped, X)
    with pytest.raises(TypeError, match=said):
        plan.apply(wrapped)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/d', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_is_refused_and_a_converted_model_trains_in_it(one_process):
    with pytest.raises(TypeError, match=r'give model\.module'):
        gp.plan(nn.parallel.DistributedDataParallel(net()), X)
    converted, _ = gp.convert(net().train(), X, **ALL)
    wrapped = nn.parallel.DistributedDataParallel(converted)
    wrapped(X).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in wrapped.parameters())


def test_a_second_time_changes_nothing_and_says_so(caplog):
    model = net()
    converted, plan = gp.convert(model, X, **ALL)
    state = copy.deepcopy(converted.state_dict())
    with caplog.at_level(logging.WARNING):
        assert plan.apply(converted) is converted
    assert 'converted by this plan already' in caplog.text
    again, second = gp.convert(converted, X, **ALL)
    assert not any(row.converts for row in second.layers)
    assert 'converted: it is a part of a Ghost conv already' in second.report()
    assert second.totals['macs_after'] == plan.totals['macs_after']
    for twin in (converted, again):
        assert same(twin.state_dict(), state)


def test_a_converted_part_inside_a_bigger_model_stays_and_the_rest_converts(tmp_path):
    part, inner = gp.convert(net(), X, **ALL)
    model = nn.Sequential(part, nn.Conv2d(4, 16, 3), nn.Conv2d(16, 4, 1)).eval()
    converted, outer = gp.convert(model, X, include='1', dw_size=3)
    assert [row.name for row in outer.layers if row.converts] == ['1']
    assert converted[0].state_dict().keys() == part.state_dict().keys()
    assert gp.count(converted, X).macs == 2 * outer.totals['macs_after']
    fresh = nn.Sequential(inner.apply(net()), nn.Conv2d(4, 16, 3), nn.Conv2d(16, 4, 1)).eval()
    twin = outer.apply(fresh)
    twin.load_state_dict(converted.state_dict())
    assert torch.equal(twin(X), converted(X))


@pytest.mark.parametrize(
    'options, error',
    [
        ({'calibration': []}, 'no batch'),
        ({'calibration': [torch.randn(1, 5, 12, 12)]}, ''),
        ({'calibration': [X], 'reconstruct': 'all'}, 'reconstruct must be'),
        ({'reconstruct': 'block'}, 'needs calibration'),
        ({'calibration': [X, torch.randn(2, 3, 14, 14)], 'reconstruct': 'layer'}, 'one size'),
        ({'optimizers': 3}, ''),
    ],
)
@pytest.mark.parametrize('inplace', [True, False])
def test_errors_leave_the_model_untouched(options, error, inplace):
    model = net()
    plan = gp.plan(model, X, **ALL)
    ids, state = list(map(id, model.modules())), copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, RuntimeError, TypeError), match=error):
        plan.apply(model, inplace=inplace, **options)
    assert list(map(id, model.modules())) == ids
    assert same(model.state_dict(), state)
    assert not any(v for m in model.modules() for k, v in vars(m).items() if k.endswith('_hooks'))
    assert not any('forward' in vars(m) for m in model.modules())


@pytest.mark.parametrize('options', [{}, {'macs': 0.9}, {'reconstruct': 'block', 'steps': 1}])
def test_what_is_converted_in_inference_mode_can_learn(options):
    model = net()
    with torch.inference_mode():
        images = [torch.randn_like(X)]
        converted = gp.convert(model, X, calibration=images, **options, **ALL)[0]
    converted.train()(X).square().sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


@pytest.mark.parametrize('script', [torch.jit.script, lambda part: torch.jit.trace(part, X)])
def test_scripted_parts_stay_and_the_rest_converts(script):
    model = nn.Sequential(script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()))
    model.append(nn.Conv2d(8, 16, 3))
    converted, plan = gp.convert(model.eval(), X, macs=0.9, calibration=[X], **ALL)
    assert [row.name for row in plan.layers] == ['1']
    assert isinstance(converted[1], gp.GhostConv2d) and converted(X).shape == model(X).shape


def test_a_forward_that_would_call_the_original_from_the_copy_is_refused():
    model = net()
    own = model[0].forward
    model[0].forward = lambda x: own(x).relu()
    with pytest.raises(ValueError, match=r"'0' .* use inplace=True"):
        gp.convert(model, X, **ALL)
    want = model(X)
    converted = gp.convert(model, X, inplace=True, **ALL)[0]
    assert converted is model and model(X).shape == want.shape
