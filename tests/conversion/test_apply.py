"""Plans applied to models: weights, copies, results, refusals."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from helpers.plans import images, net
from helpers.small import ALL
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import apply_plan


def test_the_plan_stays_and_the_result_has_a_plan_with_errors():
    plan = gp.plan(net(), images(), keep_last=False)
    before = copy.deepcopy(plan)
    result = apply_plan(plan, net(), calibration=[images()])
    assert plan == before
    assert all((layer.error is None) != layer.converts for layer in result.plan.layers)
    plain = replace(result.plan, layers=tuple(replace(r, error=None) for r in result.plan.layers))
    assert plain == plan


def test_what_the_plan_says_is_what_happens():
    model = net()
    made = gp.plan(model, images(), keep_last=False)
    before = copy.deepcopy(model.state_dict())
    converted = made.apply(model)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert converted(images()).shape == model(images()).shape
    for plain, changed in ((model, 'before'), (converted, 'after')):
        cost = gp.count(plain, images())
        assert cost.params == made.totals[f'params_{changed}']
        assert cost.macs == 2 * made.totals[f'macs_{changed}']
    kinds = {name: type(m) for name, m in converted.named_modules()}
    for row in made.layers:
        assert (kinds[row.name] is gp.GhostConv2d) == (row.decision == 'convert')


@pytest.mark.parametrize('calibration', [None, [images(4)]])
@pytest.mark.parametrize('ratio', [2, 3])
def test_redundant_maps_are_inherited_exactly(calibration, ratio):
    """Where maps really are filters of each other, nothing is lost."""
    conv = nn.Conv2d(3, 12, 3, padding=1, bias=False)
    with torch.no_grad():
        primaries = 12 // ratio
        for copy_of in range(primaries, 12):
            conv.weight[copy_of] = conv.weight[copy_of % primaries] * (copy_of - 8.5)
    conv.weight.data = conv.weight.data[torch.randperm(12)]
    model = nn.Sequential(conv).double().eval()
    converted, made = gp.convert(
        model, images().double(), calibration=calibration and [b.double() for b in calibration],
        keep_first=False, keep_last=False, ratio=ratio,
    )  # fmt: skip
    assert made.layers[0].decision == 'convert'
    assert made.layers[0].error < 1e-4
    torch.testing.assert_close(
        converted(images().double()), model(images().double()), rtol=1e-3, atol=1e-3
    )


def test_inherited_is_nearer_than_fresh_and_data_nearer_still():
    torch.manual_seed(3)
    model = net()
    smooth = nn.functional.avg_pool2d(torch.randn(64, 3, 20, 20), 5, 1)
    want = model[:4](smooth)

    def lost(**options):
        converted, made = gp.convert(model, images(), include='3', **options)
        return ((converted[:4](smooth) - want).square().mean() / want.var()).item(), made

    fresh, _ = lost(inherit=False)
    blind, _ = lost()
    seen, made = lost(calibration=[smooth])
    assert seen < blind < fresh
    assert seen < 0.6
    assert 0 < made.layers[1].error < 1


def test_order_and_flags_stay():
    model = net()
    model[3].requires_grad_(False)
    model[3].bias.requires_grad_(True)
    model = model.to(memory_format=torch.channels_last).to(torch.bfloat16)
    converted, _ = gp.convert(model, images().bfloat16(), include='3')
    ghost = converted[3]
    assert not ghost.training
    assert not ghost.primary_conv.weight.requires_grad
    assert ghost.primary_conv.bias.requires_grad
    assert {p.dtype for p in ghost.parameters()} == {torch.bfloat16}
    out, dense = converted[:4](images().bfloat16()), model[:4](images().bfloat16())
    rows = ghost.order < ghost.primary_conv.out_channels
    torch.testing.assert_close(out[:, rows], dense[:, rows], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('reconstruct', [None, 'block'])
def test_a_converted_copy_has_nothing_in_common_with_the_original(reconstruct):
    model = net().train()
    own = {id(module): dict(vars(module)) for module in model.modules()}
    made = gp.plan(model, images())  # some convs stay
    converted = made.apply(model, calibration=[images()], reconstruct=reconstruct, steps=1)
    assert not {id(m) for m in converted.modules()} & {id(m) for m in model.modules()}
    tensors = [{t.data_ptr() for t in m.state_dict().values()} for m in (model, converted)]
    assert not tensors[0] & tensors[1]
    for module in model.modules():
        assert vars(module) == own[id(module)]


def test_errors_leave_the_model_alone():
    model = net()
    made = gp.plan(model, images(), keep_last=False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r'made for another Sequential.*classes'):
        made.apply(nn.Sequential(nn.Conv2d(3, 8, 3)), inplace=True)
    with pytest.raises(ValueError, match='no batch'):
        made.apply(model, calibration=[], inplace=True)
    with pytest.raises(RuntimeError):
        made.apply(model, calibration=[torch.randn(1, 4, 16, 16)], inplace=True)
    assert list(model.state_dict()) == list(before)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert not any(m._forward_hooks for m in model.modules())


def test_what_another_plan_made_is_not_taken_for_this_ones():
    model = net()
    two, four = (gp.plan(model, images(), ratio=ratio) for ratio in (2, 4))
    some = gp.plan(model, images(), ratio=2, include='3')
    converted = two.apply(model)
    assert two.apply(converted) is converted
    for other in (four, some):
        with pytest.raises(ValueError, match='converted by another plan, which differs at'):
            other.apply(converted)


@pytest.mark.parametrize('edit', [{'name': '33'}, {'norm': 'norm9'}])
def test_rows_of_modules_that_are_not_there_are_refused(edit):
    made = gp.plan(net(), images())
    layer = replace(made.layers[1], **edit)
    made = replace(made, layers=(made.layers[0], layer, *made.layers[2:]))
    with pytest.raises(ValueError, match=f'has no module {next(iter(edit.values()))!r}; decision'):
        made.apply(net())


@pytest.mark.parametrize(
    'options, said',
    [
        ({'reconstruct': 'foo', 'inherit': False}, 'None or one of'),
        ({'reconstruct': 'block', 'inherit': False}, 'needs inherited weights'),
        ({'steps': -1}, 'steps must be 0 or more, got -1'),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        gp.plan(net(), images()).apply(net(), calibration=[images()], **options)


def test_an_optimizer_of_another_model_is_refused():
    model = net()
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    before = [id(p) for p in model.parameters()]
    with pytest.raises(ValueError, match='no parameter of this'):
        gp.plan(model, images(), **ALL).apply(model, inplace=True, optimizers=other)
    assert before == [id(p) for p in model.parameters()]


def test_a_forgotten_optimizer_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        gp.plan(net(), images(), **ALL).apply(net(), inplace=True)
    assert 'optimizers=' in caplog.text
