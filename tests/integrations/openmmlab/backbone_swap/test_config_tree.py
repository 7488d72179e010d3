"""Backbones are found in configs, and changes are written deep in them."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from ghost_plugin.integrations.openmmlab.backbone_swap import config_tree

PART = {'type': 'A', 'backbone': {'type': 'B'}}


def test_the_backbone_is_found_inside_a_detector():
    assert config_tree.find_part(PART) == ((), PART)
    assert config_tree.find_part({'detector': PART}) == (('detector',), PART)


@pytest.mark.parametrize(
    'model, said',
    [
        (None, 'this config has no model.backbone'),
        ({'type': 'A'}, 'the A of this config has no'),
        ({**PART, 'neck': {'type': 'mmdet.RFP'}}, 'RFP keeps its backbone'),
        ({**PART, 'type': 'MAE'}, 'hides patches'),
    ],
)
def test_models_without_a_backbone_of_their_own_are_refused(model, said):
    with pytest.raises(ValueError, match=said):
        config_tree.find_part(model)


def test_names():
    assert config_tree.type_name([{'type': 'mmdet.FPN'}, {'type': 'X'}]) == 'FPN'
    assert config_tree.type_name(None) == 'none'
    assert config_tree.is_ghost_backbone({'type': 'ghost_plugin.GhostNet'})
    assert config_tree.nest(('a', 'b'), 1) == {'a': {'b': 1}}


def test_a_change_restates_lists_and_leaves_the_rest_out():
    tree = {'a': {'n': 1, 'x': 2}, 'b': [{'n': 1, 'y': 3}, {'z': 4}], 'c': [1, 2]}

    def double(key, value, owner):
        return 2 * value if key == 'n' else None

    change = config_tree.tree_change(tree, double)
    assert change == {'a': {'n': 2}, 'b': [{'n': 2, 'y': 3}, {'z': 4}]}
    assert config_tree.merge(tree, change) == {**change, 'a': {'n': 2, 'x': 2}, 'c': [1, 2]}
    assert tree['a']['n'] == 1
    assert config_tree.tree_change({'x': 1}, double) is None
