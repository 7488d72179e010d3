"""What hangs on a conv, and where it stands: names, hooks, flags, wrappers, optimizers."""

import copy
import logging

import pytest
import torch
from helpers.small import ALL, X, net, same
from torch import nn

import ghost_plugin as gp


class Shared(nn.Module):
    """One conv under two names and in a list, called twice; one that is called by index."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = self.first
        self.many = nn.ModuleList([self.first, nn.Conv2d(16, 16, 1)])
        self.by_key = nn.ModuleDict({'a b': nn.Conv2d(16, 16, 3)})

    def forward(self, x):
        return self.by_key['a b'](self.many[-1](self.many[0](self.second(self.first(x)))))


def test_a_shared_conv_is_replaced_under_every_name():
    model, x = Shared(), torch.randn(2, 16, 9, 9)
    converted, plan = gp.convert(model, x, **ALL)
    assert [row.name for row in plan.layers] == ['first', 'many.1', 'by_key.a b']
    assert converted.first is converted.second is converted.many[0]
    assert not any(
        type(m) is nn.Conv2d and m.groups == 1 for m in (converted.first, *converted.many)
    )
    assert plan.layers[0].shape.pixels == 3 * 81
    assert gp.count(converted, x).macs == 2 * plan.totals['macs_after']
    assert gp.count(converted, x).params == plan.totals['params_after']


def test_a_conv_called_twice_is_fitted_on_both_calls():
    model, x = Shared().eval(), torch.randn(8, 16, 9, 9)
    want = model(x)
    blind, _ = gp.convert(model, x, **ALL)
    seen, plan = gp.convert(model, x, calibration=[x], **ALL)
    assert (seen(x) - want).norm() < (blind(x) - want).norm()
    assert all(row.error is not None for row in plan.layers)


class Holder(nn.Module):
    """Calls a conv through something that is no module."""

    def __init__(self, hold):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3)
        self.held = hold(self.conv)

    def forward(self, x):
        held = self.held
        held = held['conv'] if isinstance(held, dict) else held[0]
        return held(x)


@pytest.mark.parametrize('hold', [lambda c: [c], lambda c: (c,), lambda c: {'conv': c}])
def test_a_conv_held_outside_of_the_modules_is_not_lost(hold):
    model, x = Holder(hold).eval(), torch.randn(2, 16, 9, 9)
    assert [row.reason for row in gp.plan(model, x, **ALL).layers] == ['held']


class Reader(nn.Module):
    """Somebody else looks at a tensor of a conv."""

    def __init__(self, read):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.read = read

    def forward(self, x):
        return self.other(self.read(self.conv, x))


@pytest.mark.parametrize(
    'read',
    [
        lambda conv, x: nn.functional.conv2d(x, conv.weight.abs(), conv.bias),
        lambda conv, x: conv(x.to(conv.weight.dtype)),
        lambda conv, x: conv(x) + conv.bias.mean(),
    ],
    ids=['weight', 'dtype', 'bias'],
)
def test_a_conv_whose_tensors_are_read_elsewhere_stays(read):
    reasons = {row.name: row.reason for row in gp.plan(Reader(read), X, **ALL).layers}
    assert reasons['conv'] in ('weight_read', 'unused')
    assert reasons['other'] == ''
    converted, _ = gp.convert(Reader(read), X, **ALL)
    assert converted(X).shape == (2, 16, 8, 8)


def test_a_weight_tied_to_any_module_stays():
    model = net()
    model.register_parameter('extra', model[3].weight)
    model.add_module('linear', nn.Module())
    model.linear.weight = model[4].weight
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)
    assert [row.reason for row in gp.plan(model, X, **ALL).layers] == ['', 'tied', 'tied']


def hook(*args):
    return None


@pytest.mark.parametrize(
    'register',
    ['register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook'],
)
def test_hooks_on_a_conv_keep_it_and_those_on_others_survive(register):
    model = net()
    getattr(model[3], register)(hook)
    getattr(model[1], register)(hook)
    converted, plan = gp.convert(model, X, **ALL)
    assert [row.reason for row in plan.layers] == ['', 'hooks', '']
    count = sum(len(v) for k, v in vars(converted[1]).items() if k.endswith('_hooks'))
    assert count == sum(len(v) for k, v in vars(model[1]).items() if k.endswith('_hooks')) == 1
    plan = plan.replace_layer('3', decision='convert')
    with pytest.raises(ValueError, match=r"'3'.*hooks"):
        plan.apply(model)


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


def test_frozen_flags_and_modes_are_kept():
    model = net()
    model[0].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    model[3].train()
    converted, _ = gp.convert(model, X, dw_size=1, **ALL)
    assert not any(p.requires_grad for p in converted[0].parameters())
    flags = {n: p.requires_grad for n, p in converted[4].named_parameters()}
    assert all(flag == n.endswith('weight') for n, flag in flags.items())
    assert converted[3].training and not converted[0].training


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('calibrated', [False, True])
def test_dtypes_are_kept(dtype, calibrated):
    if dtype is torch.float16 and torch.__version__ < (2, 4):
        pytest.skip('needs torch 2.4')
    model, x = net().to(dtype), X.to(dtype)
    converted, _ = gp.convert(model, x, calibration=[x] if calibrated else None, **ALL)
    assert {p.dtype for p in converted.parameters()} == {dtype}
    assert converted(x).dtype == dtype
    assert torch.isfinite(converted(x)).all()


@pytest.mark.parametrize('calibrated', [False, True])
def test_channels_last_is_kept(calibrated):
    model, x = net().to(memory_format=torch.channels_last), X.to(memory_format=torch.channels_last)
    converted, _ = gp.convert(model, x, calibration=[x] if calibrated else None, **ALL)
    out = converted[:4](x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for p in converted.parameters():
        assert p.ndim < 4 or p.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('mode', ['zeros', 'reflect', 'replicate', 'circular'])
def test_channels_last_is_kept_by_single_pixels_in_every_padding_mode(mode):
    same_strides(nn.Conv2d(3, 3, 1, padding_mode=mode), torch.randn(2, 3, 16, 14))


@pytest.mark.parametrize('kernel', [(2, 1), (3, 1), (1, 3), (3, 3)])
def test_channels_last_is_kept_behind_a_single_map(kernel):
    same_strides(nn.Conv2d(1, 5, kernel), torch.randn(2, 1, 16, 14))


def same_strides(conv, x):
    for layout in (torch.contiguous_format, torch.channels_last):
        conv, x = (t.to(memory_format=layout) for t in (conv, x))
        ghost, _ = gp.convert(conv, x, dw_size=1, **ALL)
        assert ghost(x).stride() == conv(x).stride()


def test_an_optimizer_built_before_trains_the_new_weights():
    model = net().train()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{'params': weights, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}], lr=0.1
    )
    model(X).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    gp.plan(model, X, **ALL, dw_size=1).apply(model, inplace=True, optimizers=[optimizer])
    held = [p for group in optimizer.param_groups for p in group['params']]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(set(map(id, held)))
    assert all(p.ndim <= 1 for p in optimizer.param_groups[1]['params'])
    assert all(p.ndim > 1 for p in optimizer.param_groups[0]['params'])
    before = [p.detach().clone() for p in held]
    model(X).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, held, strict=True))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_one_optimizer_needs_no_list_and_a_copy_needs_none():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = gp.plan(model, X, **ALL)
    with pytest.raises(ValueError, match=r'optimizers=.*inplace=True'):
        plan.apply(model, optimizers=optimizer)
    plan.apply(model, inplace=True, optimizers=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert held == {id(p) for p in model.parameters()}


def test_an_optimizer_of_another_model_is_refused():
    model = net()
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    before = [id(p) for p in model.parameters()]
    with pytest.raises(ValueError, match='no parameter of this'):
        gp.plan(model, X, **ALL).apply(model, inplace=True, optimizers=other)
    assert before == [id(p) for p in model.parameters()]


def test_a_forgotten_optimizer_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        gp.plan(net(), X, **ALL).apply(net(), inplace=True)
    assert 'optimizers=' in caplog.text


class Behind(nn.Module):
    """A conv, and a norm that gets its maps in some way."""

    def __init__(self, between, also):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.between, self.also = between, also

    def forward(self, x):
        maps = self.conv(x)
        return self.norm(self.between(maps)) + self.also(maps)


@pytest.mark.parametrize(
    'between, also, norm',
    [
        (nn.Identity(), lambda y: 0, 'norm'),
        (nn.ReLU(), lambda y: 0, ''),
        (nn.ReLU(inplace=True), lambda y: 0, ''),
        (nn.Identity(), lambda y: y, ''),
        (nn.Identity(), lambda y: y.mean(), ''),
    ],
    ids=['alone', 'relu', 'relu in place', 'added', 'averaged'],
)
def test_a_norm_takes_a_shift_only_of_maps_that_nobody_else_gets(between, also, norm):
    row = gp.plan(Behind(between, also).eval(), X, **ALL).layers[0]
    assert row.norm == norm


def test_one_picture_without_a_batch_axis_goes_through():
    converted, _ = gp.convert(nn.Sequential(nn.Conv2d(3, 15, 3)), X, **ALL)
    torch.testing.assert_close(converted(X[0]), converted(X)[0])


class Listed(nn.Module):
    """Reads a conv's weight, which a list holds, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.weights = [self.second.weight]

    def forward(self, x):
        return self.second(self.first(x)) * sum(w.square().mean() for w in self.weights)


def test_a_weight_in_a_list_stays_with_its_conv():
    model = Listed()
    converted, plan = gp.convert(model, torch.randn(2, 16, 9, 9), **ALL)
    assert [row.reason for row in plan.layers] == ['', 'held']
    assert converted.weights[0] is converted.second.weight


def test_what_others_noted_on_a_conv_stays():
    model = net()
    model[3].gain = 2.0
    converted, _ = gp.convert(model, X, **ALL)
    assert isinstance(converted[3], gp.GhostConv2d) and converted[3].gain == 2.0


def test_weights_that_are_computed_are_not_taken_for_tied():
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, bias=False) for _ in range(3))).eval()
    nn.utils.parametrizations.weight_norm(model[1])
    plan = gp.plan(model, torch.randn(1, 16, 9, 9), **ALL)
    assert [row.reason for row in plan.layers] == ['', 'parametrized', '']
