"""Plans as values: files, edits, copies."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from helpers.plans import images, layer, net, plan_of
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.plan import FORMAT_VERSION


def test_plan_and_weights_restore_and_seed_decides(tmp_path):
    model = net()
    converted, made = gp.convert(model, images(), keep_last=False, inherit=False)
    made.save(tmp_path / 'plan.json')
    again = gp.ConversionPlan.load(tmp_path / 'plan.json')
    assert again == made
    twin = again.apply(net(), inherit=False)
    twin.load_state_dict(converted.state_dict(), strict=True)
    torch.testing.assert_close(twin(images()), converted(images()), rtol=0, atol=0)
    same = made.apply(model, inherit=False)
    torch.testing.assert_close(same(images()), converted(images()), rtol=0, atol=0)
    first, second = (gp.plan(model, images(), seed=1) for _ in range(2))
    first.save(tmp_path / 'a.json')
    second.save(tmp_path / 'b.json')
    assert (tmp_path / 'a.json').read_bytes() == (tmp_path / 'b.json').read_bytes()


def test_edited_plans_do_as_they_say(tmp_path):
    made = gp.plan(net(), images(), keep_last=False)
    made.save(tmp_path / 'plan.json')
    content = json.loads((tmp_path / 'plan.json').read_text())
    content['rows'][1]['decision'] = 'keep'
    content['rows'][2]['ratio'] = 4
    (tmp_path / 'plan.json').write_text(json.dumps(content))
    converted = gp.ConversionPlan.load(tmp_path / 'plan.json').apply(net())
    assert type(converted[3]) is nn.Conv2d
    assert converted[5].primary_conv.out_channels == 4


def test_converted_models_copy_pickle_and_do_not_nest():
    converted, _ = gp.convert(net(), images(), keep_last=False)
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        torch.testing.assert_close(twin(images()), converted(images()), rtol=0, atol=0)
    again = gp.plan(converted, images(), keep_first=False, keep_last=False)
    assert all(row.decision == 'keep' for row in again.layers if 'primary' in row.name)
    assert {r.reason for r in again.layers if 'primary' in r.name or 'cheap' in r.name} == {
        'converted'
    }
    torch.testing.assert_close(torch.jit.script(converted)(images()), converted(images()))
    torch.testing.assert_close(
        torch.export.export(converted, (images(),)).module()(images()), converted(images())
    )


def test_files_that_are_no_plans_are_named(tmp_path):
    made, path = gp.plan(net(), images()), tmp_path / 'plan.json'
    replace(made, layers=(*made.layers, made.layers[1])).save(path)
    with pytest.raises(ValueError, match="one row for each conv, this one several of '3'"):
        gp.ConversionPlan.load(path)
    path.write_text('{}')
    with pytest.raises(ValueError, match="is not a conversion plan: 'rows' is missing"):
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
    content, path = gp.plan(net(), images()).as_dict(), tmp_path / 'plan.json'
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"plan.json' is not a conversion plan"):
        gp.ConversionPlan.load(path)


def test_an_edit_gives_a_new_plan():
    plan = plan_of(layer('a'), layer('b'))
    edited = plan.replace_layer('b', decision='keep')
    again = edited.replace_layer('a', ratio=4, dw_size=5, cheap='shift')
    grouped = edited.replace_layer('a', dw_size=1, group_size='all')
    assert [r.decision for r in plan.layers] == ['convert', 'convert']
    assert [r.decision for r in again.layers] == ['convert', 'keep']
    settings = {'ratio': 4, 'dw_size': 5, 'cheap': 'shift', 'group_size': 1}
    assert again.layers[0].settings == settings
    settings = {'ratio': 2, 'dw_size': 1, 'cheap': 'depthwise', 'group_size': 'all'}
    assert grouped.layers[0].settings == settings
    assert grouped.layers[0].costs['macs_after'] == (16 * 32 * 9 + 16 * 16) * 100
    assert again.totals['macs_after'] < plan.totals['macs_before']


@pytest.mark.parametrize(
    ('name', 'edit', 'said'),
    [
        ('c', {'ratio': 2}, r"no conv 'c'; it has \['a'\]"),
        ('a', {'decision': 'no'}, "decision of 'a' must be 'convert' or 'keep', got 'no'"),
        ('a', {'dw_size': 2}, "'a': dw_size must be odd"),
        ('a', {'ratio': 0.5}, "'a': ratio"),
        ('a', {'group_size': 0}, "'a': group_size must be a positive integer or 'all'"),
        ('a', {'group_size': 32}, "'a': group_size=32 is more than the 16 primary channels"),
        ('a', {'group_size': 2, 'cheap': 'shift'}, "'a': group_size=2 needs cheap='depthwise'"),
    ],
)
def test_edits_that_are_not_allowed_are_named(name, edit, said):
    with pytest.raises(ValueError, match=said):
        plan_of(layer('a')).replace_layer(name, **edit)


@pytest.mark.parametrize('group_size', [2, 4, 'all'])
def test_grouped_ghosts_restore_from_a_plan_and_weights(tmp_path, group_size):
    options = {'keep_last': False, 'dw_size': 1, 'group_size': group_size}
    converted, made = gp.convert(net(), images(), inherit=False, **options)
    assert any(layer.converts for layer in made.layers)
    made.save(tmp_path / 'plan.json')
    written = json.loads((tmp_path / 'plan.json').read_text())
    assert {row['group_size'] for row in written['rows']} == {group_size}
    twin = gp.ConversionPlan.load(tmp_path / 'plan.json').apply(net(), inherit=False)
    twin.load_state_dict(converted.state_dict(), strict=True)
    assert torch.equal(twin(images()), converted(images()))
    assert made.apply(converted) is not None  # it is recognised
    counted = gp.count(converted, images(1))
    assert (counted.params, counted.macs) == (
        made.totals['params_after'],
        made.totals['macs_after'],
    )


def test_plans_without_groups_are_written_as_before(tmp_path):
    made = gp.plan(net(), images())
    content = made.as_dict()
    assert all('group_size' not in row for row in content['rows'])
    assert gp.ConversionPlan.from_dict(content) == made
    assert {layer.group_size for layer in made.layers} == {1}


def test_convs_that_cannot_mix_primary_channels_are_kept():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2), nn.Conv2d(16, 4, 3), nn.Conv2d(4, 16, 3))
    include = {'*': {'group_size': 4, 'dw_size': 1}}
    layers = gp.plan(model, torch.zeros(1, 8, 9, 9), include=include).layers
    assert [layer.reason for layer in layers] == ['group_size', 'group_size', '']


def test_a_write_says_how_to_edit():
    plan = plan_of(layer('a'))
    with pytest.raises(FrozenInstanceError, match=r"'ratio'.*plan\.replace_layer\("):
        plan.layers[0].ratio = 4
    with pytest.raises(FrozenInstanceError, match=r"'layers'.*plan\.replace_layer\("):
        plan.layers = ()


def test_rows_is_the_old_name_of_layers():
    plan = plan_of(layer('a'))
    with pytest.warns(DeprecationWarning, match='use plan.layers'):
        assert plan.rows is plan.layers


def test_files_keep_their_names_and_get_a_version():
    content = plan_of(layer('a')).as_dict()
    assert list(content) == [
        'format_version', 'model', 'fingerprint', 'rows', 'params', 'macs', 'latency', 'seed',
        'versions', 'totals',
    ]  # fmt: skip
    assert content['format_version'] == FORMAT_VERSION
    content.pop('format_version')  # as of version 0.1
    assert gp.ConversionPlan.from_dict(content) == plan_of(layer('a'))


def test_files_of_a_newer_format_are_refused(tmp_path):
    content = plan_of(layer('a')).as_dict() | {'format_version': FORMAT_VERSION + 1}
    (tmp_path / 'plan.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'format_version 2, .* reads 1; upgrade ghost_plugin'):
        gp.ConversionPlan.load(tmp_path / 'plan.json')


def test_rows_with_unknown_names_are_refused(tmp_path):
    (tmp_path / 'x.json').write_text('{"rows": [{"nam": 1}]}')
    with pytest.raises(ValueError, match=r'x\.json.* is not a conversion plan'):
        gp.ConversionPlan.load(tmp_path / 'x.json')
