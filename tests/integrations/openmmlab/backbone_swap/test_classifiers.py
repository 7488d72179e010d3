"""Necks and heads of classifiers fit the new backbone."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from ghost_plugin.integrations.openmmlab.backbone_swap.classifiers import change

GHOST = {'type': 'ghost_plugin.GhostNet', 'width': 0.5}
OLD = {'type': 'ghost_plugin.GGhostRegNet', 'arch': '002'}
POOL = {'type': 'GlobalAveragePooling'}


def test_a_linear_head_gets_the_channels_of_the_final_conv():
    head = {'type': 'LinearClsHead', 'num_classes': 4, 'in_channels': 368}
    new, remarks = change({'backbone': OLD, 'neck': POOL, 'head': head}, GHOST, 'mmengine')
    assert new['backbone'] == {'_delete_': True, 'out_indices': (5,), **GHOST}
    assert new['head'] == {'in_channels': 480} and not remarks and 'neck' not in new


def test_a_head_for_tokens_is_replaced():
    head = {'type': 'VisionTransformerClsHead', 'num_classes': 4, 'topk': (1,), 'in_channels': 768}
    new, remarks = change({'backbone': OLD, 'neck': None, 'head': head}, GHOST, 'mmengine')
    assert new['neck'] == {'_delete_': True, **POOL}
    assert new['head'] == {'_delete_': True, 'type': 'LinearClsHead', 'in_channels': 480,
                           'num_classes': 4, 'topk': (1,)}  # fmt: skip
    assert len(remarks) == 1


def test_a_neck_that_reads_a_pyramid():
    neck = {'type': 'HRFuseScales', 'in_channels': [18, 36, 72]}
    new, _ = change({'backbone': OLD, 'neck': neck}, GHOST, 'mmengine')
    assert new['backbone']['out_indices'] == (2, 3, 4)
    assert new['neck'] == {'in_channels': [20, 56, 80]}
    with pytest.raises(ValueError, match='wants 3 levels and the backbone gives 1'):
        change({'backbone': OLD, 'neck': neck}, {**GHOST, 'out_indices': (5,)}, 'mmengine')


@pytest.mark.parametrize(
    'head, said', [({'type': 'ClsHead'}, 'num_classes'), ({'type': 'X'}, 'has no in_channels')]
)
def test_heads_that_cannot_follow(head, said):
    with pytest.raises(ValueError, match=said):
        change({'backbone': OLD, 'neck': POOL, 'head': head}, GHOST, 'mmengine')
