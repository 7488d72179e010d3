"""The base class of a model determines its kind."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from ghost_plugin.integrations.openmmlab.backbone_swap.kinds import KINDS, find_kind, kind_of_class


def test_every_base_class_is_of_its_kind():
    for kind in KINDS:
        for name in kind.base_classes:
            base = type(name, (), {})
            assert kind_of_class(type('Model', (base,), {})) is kind
            assert find_kind({'type': type('Model', (base,), {})}, None) is kind


@pytest.mark.parametrize(
    'part, scope, said',
    [
        ({'type': type('Base3DDetector', (), {})}, None, 'it reads point clouds'),
        ({'type': type('Other', (), {})}, None, 'it inherits none of BaseClassifier'),
        ({'type': 'mmocr.X'}, None, 'mmocr cannot be swapped'),
        ({'type': 'X'}, 'mmagic', 'mmagic cannot be swapped'),
        ({'type': 'Unheard'}, 'mmengine', 'not registered here in the scope'),
    ],
)
def test_other_models_are_refused(part, scope, said):
    with pytest.raises(ValueError, match=said):
        find_kind(part, scope)
