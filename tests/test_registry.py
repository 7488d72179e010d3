"""The registries of this package are children of mmengine's."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from mmengine.registry import Registry

from ghost_plugin.registry import FUNCTIONS, HOOKS, MODELS, ROOT, register_old_name


def test_our_scope_is_found_from_the_root():
    assert MODELS.parent is ROOT and ROOT.children['ghost_plugin'] is MODELS
    assert {registry.scope for registry in (MODELS, HOOKS, FUNCTIONS)} == {'ghost_plugin'}


def test_an_old_name_builds_the_new_type_and_warns():
    registry = Registry('thing', scope='ghost_plugin_test')
    register_old_name(registry, 'Old', complex)
    with pytest.warns(FutureWarning, match=r'ghost_plugin\.Old is deprecated; use .*complex'):
        assert registry.build({'type': 'Old', 'real': 1}) == 1
