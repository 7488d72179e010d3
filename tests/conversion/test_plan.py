import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import ghost_plugin as gp

X = torch.randn(2, 3, 16, 16)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 15, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(15, 16, (1, 3), padding=(0, 1), dilation=(1, 1), bias=False),
        nn.Conv2d(16, 8, 3, padding=1, padding_mode='reflect'), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def test_what_the_plan_says_is_what_happens():
    model = net()
    made = gp.plan(model, X, keep_last=False)
    before = copy.deepcopy(model.state_dict())
    converted = made.apply(model)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert converted(X).shape == model(X).shape
    for plain, changed in ((model, 'before'), (converted, 'after')):
        cost = gp.count(plain, X)
        assert cost.params == made.totals[f'params_{changed}']
        assert cost.macs == 2 * made.totals[f'macs_{changed}']
    kinds = {name: type(m) for name, m in converted.named_modules()}
    for row in made.layers:
        assert (kinds[row.name] is gp.GhostConv2d) == (row.decision == 'convert')


@pytest.mark.parametrize('calibration', [None, [torch.randn(4, 3, 16, 16)]])
@pytest.mark.parametrize('ratio', [2, 3])
def test_redundant_maps_are_inherited_exactly(calibration, ratio):
    """Where maps really are filters of each other, nothing is lost."""
    conv = nn.Conv2d(3, 12, 3, padding=1, bias=False)
    with torch.no_grad():
        families = 12 // ratio
        for copy_of in range(families, 12):
            conv.weight[copy_of] = conv.weight[copy_of % families] * (copy_of - 8.5)
    conv.weight.data = conv.weight.data[torch.randperm(12)]
    model = nn.Sequential(conv).double().eval()
    converted, made = gp.convert(
        model, X.double(), calibration=calibration and [b.double() for b in calibration],
        keep_first=False, keep_last=False, ratio=ratio,
    )  # fmt: skip
    assert made.layers[0].decision == 'convert'
    assert made.layers[0].error < 1e-4
    torch.testing.assert_close(converted(X.double()), model(X.double()), rtol=1e-3, atol=1e-3)


def test_inherited_is_nearer_than_fresh_and_data_nearer_still():
    torch.manual_seed(3)
    model = net()
    pictures = nn.functional.avg_pool2d(torch.randn(64, 3, 20, 20), 5, 1)
    want = model[:4](pictures)

    def lost(**options):
        converted, made = gp.convert(model, X, include='3', **options)
        return ((converted[:4](pictures) - want).square().mean() / want.var()).item(), made

    fresh, _ = lost(inherit=False)
    blind, _ = lost()
    seen, made = lost(calibration=[pictures])
    assert seen < blind < fresh
    assert seen < 0.6
    assert 0 < made.layers[1].error < 1


def test_order_and_flags_stay():
    model = net()
    model[3].requires_grad_(False)
    model[3].bias.requires_grad_(True)
    model = model.to(memory_format=torch.channels_last).to(torch.bfloat16)
    converted, _ = gp.convert(model, X.bfloat16(), include='3')
    ghost = converted[3]
    assert not ghost.training
    assert not ghost.primary_conv.weight.requires_grad
    assert ghost.primary_conv.bias.requires_grad
    assert {p.dtype for p in ghost.parameters()} == {torch.bfloat16}
    out, dense = converted[:4](X.bfloat16()), model[:4](X.bfloat16())
    rows = ghost.order < ghost.primary_conv.out_channels
    torch.testing.assert_close(out[:, rows], dense[:, rows], rtol=2e-2, atol=2e-2)


def test_plan_and_weights_restore_and_seed_decides(tmp_path):
    model = net()
    converted, made = gp.convert(model, X, keep_last=False, inherit=False)
    made.save(tmp_path / 'plan.json')
    again = gp.ConversionPlan.load(tmp_path / 'plan.json')
    assert again == made
    twin = again.apply(net(), inherit=False)
    twin.load_state_dict(converted.state_dict(), strict=True)
    torch.testing.assert_close(twin(X), converted(X), rtol=0, atol=0)
    same = made.apply(model, inherit=False)
    torch.testing.assert_close(same(X), converted(X), rtol=0, atol=0)
    first, second = (gp.plan(model, X, seed=1) for _ in range(2))
    first.save(tmp_path / 'a.json')
    second.save(tmp_path / 'b.json')
    assert (tmp_path / 'a.json').read_bytes() == (tmp_path / 'b.json').read_bytes()


def test_edited_plans_do_as_they_say(tmp_path):
    made = gp.plan(net(), X, keep_last=False)
    made.save(tmp_path / 'plan.json')
    content = json.loads((tmp_path / 'plan.json').read_text())
    content['rows'][1]['decision'] = 'keep'
    content['rows'][2]['ratio'] = 4
    (tmp_path / 'plan.json').write_text(json.dumps(content))
    converted = gp.ConversionPlan.load(tmp_path / 'plan.json').apply(net())
    assert type(converted[3]) is nn.Conv2d
    assert converted[5].primary_conv.out_channels == 4


def test_converted_models_copy_pickle_and_do_not_nest():
    converted, _ = gp.convert(net(), X, keep_last=False)
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        torch.testing.assert_close(twin(X), converted(X), rtol=0, atol=0)
    again = gp.plan(converted, X, keep_first=False, keep_last=False)
    assert all(row.decision == 'keep' for row in again.layers if 'primary' in row.name)
    assert {r.reason for r in again.layers if 'primary' in r.name or 'cheap' in r.name} == {
        'converted'
    }
    torch.testing.assert_close(torch.jit.script(converted)(X), converted(X))
    torch.testing.assert_close(torch.export.export(converted, (X,)).module()(X), converted(X))


@pytest.mark.parametrize('reconstruct', [None, 'block'])
def test_a_converted_copy_has_nothing_in_common_with_the_original(reconstruct):
    model = net().train()
    own = {id(module): dict(vars(module)) for module in model.modules()}
    made = gp.plan(model, X)  # some convs stay
    converted = made.apply(model, calibration=[X], reconstruct=reconstruct, steps=1)
    assert not {id(m) for m in converted.modules()} & {id(m) for m in model.modules()}
    tensors = [{t.data_ptr() for t in m.state_dict().values()} for m in (model, converted)]
    assert not tensors[0] & tensors[1]
    for module in model.modules():
        assert vars(module) == own[id(module)]


def test_errors_leave_the_model_alone(tmp_path):
    model = net()
    made = gp.plan(model, X, keep_last=False)
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
    (tmp_path / 'x.json').write_text('{"rows": [{"nam": 1}]}')
    with pytest.raises(ValueError, match=r'x\.json.* is not a conversion plan'):
        gp.ConversionPlan.load(tmp_path / 'x.json')


def test_report_tells_all_in_a_table():
    text = gp.plan(net(), X).report()
    assert '| 3 | 8 to 15, 3x3 | convert | 2 |' in text
    assert '| 0 | 3 to 8, 3x3 | keep (first) |' in text
    assert 'first: the first conv of the network' in text
    assert text.splitlines()[-3].startswith('| whole model |')


def test_what_another_plan_made_is_not_taken_for_this_ones():
    model = net()
    two, four = (gp.plan(model, X, ratio=ratio) for ratio in (2, 4))
    some = gp.plan(model, X, ratio=2, include='3')
    converted = two.apply(model)
    assert two.apply(converted) is converted
    for other in (four, some):
        with pytest.raises(ValueError, match='converted by another plan, which differs at'):
            other.apply(converted)


@pytest.mark.parametrize('edit', [{'name': '33'}, {'norm': 'norm9'}])
def test_rows_of_modules_that_are_not_there_are_refused(edit):
    made = gp.plan(net(), X)
    layer = replace(made.layers[1], **edit)
    made = replace(made, layers=(made.layers[0], layer, *made.layers[2:]))
    with pytest.raises(ValueError, match=f'has no module {next(iter(edit.values()))!r}; decision'):
        made.apply(net())


def test_files_that_are_no_plans_are_named(tmp_path):
    made, path = gp.plan(net(), X), tmp_path / 'plan.json'
    replace(made, layers=(*made.layers, made.layers[1])).save(path)
    with pytest.raises(ValueError, match="one row for each conv, this one several of '3'"):
        gp.ConversionPlan.load(path)
    torch.save({}, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r"weights.pth' is not a conversion plan"):
        gp.ConversionPlan.load(tmp_path / 'weights.pth')
    with pytest.raises(FileNotFoundError, match=r'no plan at .*none\.json'):
        gp.ConversionPlan.load(tmp_path / 'none.json')


@pytest.mark.parametrize('edit', [
    lambda plan: plan.update(seed=None),
    lambda plan: plan.update(macs='240M'),
    lambda plan: plan['rows'][1]['shape'].update(in_channels=None),
    lambda plan: plan['rows'][1]['shape'].update(kernel_size='3'),
])  # fmt: skip
def test_numbers_that_are_none_are_found_while_a_plan_is_read(edit, tmp_path):
    content, path = gp.plan(net(), X).as_dict(), tmp_path / 'plan.json'
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"plan.json' is not a conversion plan"):
        gp.ConversionPlan.load(path)


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
        gp.plan(net(), X).apply(net(), calibration=[X], **options)
