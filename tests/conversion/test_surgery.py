"""Replacement of convs: names, flags, memory formats, attributes, optimizers."""

import copy
import functools

import pytest
import torch
from helpers.small import ALL, X, net, same
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.surgery import (
    build_ghost,
    build_ghosts,
    check_forwards,
    has_settings,
    replace_modules,
    shift_running_mean,
)


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


def test_one_image_without_a_batch_axis_goes_through():
    converted, _ = gp.convert(nn.Sequential(nn.Conv2d(3, 15, 3)), X, **ALL)
    torch.testing.assert_close(converted(X[0]), converted(X)[0])


def test_what_others_noted_on_a_conv_stays():
    model = net()
    model[3].gain = 2.0
    converted, _ = gp.convert(model, X, **ALL)
    assert isinstance(converted[3], gp.GhostConv2d) and converted[3].gain == 2.0


def test_modules_are_replaced_wherever_they_stand():
    model = Shared()
    new = nn.Identity()
    assert replace_modules(model, {'second': new}) is model
    assert model.first is model.second is model.many[0] is new
    assert replace_modules(model, {'': new}) is new


@pytest.mark.parametrize(
    ('settings', 'equal'),
    [({}, True), ({'ratio': 3}, False), ({'dw_size': 1}, False), ({'cheap': 'shift'}, False)],
)
def test_settings_of_a_ghost_are_recognised(settings, equal):
    own = {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise'}
    ghost = build_ghost(nn.Conv2d(3, 16, 3), own)
    assert has_settings(ghost, {**own, **settings}) == equal


@pytest.mark.parametrize('group_size', [1, 2, 8, 'all'])
def test_group_sizes_of_a_ghost_are_recognised(group_size):
    own = {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise'}
    ghost = build_ghost(nn.Conv2d(3, 16, 3), {**own, 'group_size': group_size})
    equal = [size for size in (1, 2, 8, 'all') if has_settings(ghost, {**own, 'group_size': size})]
    assert equal == ([8, 'all'] if group_size in (8, 'all') else [group_size])
    assert not has_settings(ghost, {**own, 'cheap': 'shift', 'group_size': 1})


def test_ghosts_have_the_seed_and_leave_the_random_state():
    model, settings = net(), {'3': {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise'}}
    before = torch.get_rng_state()
    first, again = (build_ghosts(model, settings, 5)['3'] for _ in range(2))
    assert same(first.state_dict(), again.state_dict())
    assert first.dense_name == '3'
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="'1', a BatchNorm2d, cannot be converted"):
        build_ghosts(model, {'1': settings['3']}, 0)


def test_a_forward_that_is_bound_to_the_original_is_found():
    model = net()
    check_forwards(model)
    own = nn.Conv2d(3, 16, 3)
    model[0].forward = functools.partial(lambda x: own(x))
    with pytest.raises(ValueError, match=r"'0' .*has a forward of its own"):
        check_forwards(model)


def test_a_shift_of_the_mean_is_added_to_the_input():
    norm, x = nn.BatchNorm2d(3).eval(), torch.ones(1, 3, 2, 2)
    shift = torch.tensor([1.0, 2.0, 3.0])
    wanted = norm(x + shift[:, None, None])
    shift_running_mean(norm, shift)
    torch.testing.assert_close(norm(x), wanted)
