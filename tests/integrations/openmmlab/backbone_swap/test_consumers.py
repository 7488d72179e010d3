"""Parts that read levels get the channels of the new backbone."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS

from ghost_plugin.integrations.openmmlab.backbone_swap import consumers

OLD, NEW = [(16, 4), (32, 8), (64, 16)], [(12, 4), (20, 8), (56, 16)]


@MODELS.register_module(force=True)
class LastLevelNeck(BaseModule):
    def __init__(self, in_channels, out_channels=9, groups=1):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels[-1], out_channels, 1, groups=groups)

    def forward(self, maps):
        return (self.conv(maps[-1]),)


def fit(last_level=True, **part):
    return consumers.fit({'backbone': {}, **part}, OLD, NEW, 'mmengine', last_level=last_level)


@pytest.mark.parametrize(
    'head, change',
    [
        ({'in_channels': 64}, {'in_channels': 56}),
        ({'in_channels': 32, 'in_index': 1}, {'in_channels': 20}),
        ({'in_channels': [16, 64], 'in_index': [0, 2]}, {'in_channels': [12, 56]}),
        ({'in_channels': [16, 32, 64]}, {'in_channels': [12, 20, 56]}),
        ({'inner': {'in_channels': [64, 32, 16]}}, {'inner': {'in_channels': [56, 20, 12]}}),
    ],
)
def test_heads_without_a_neck(head, change):
    assert fit(decode_head=head) == {'decode_head': change}
    assert fit(decode_head=[head, {}]) == {'decode_head': [{**head, **change}, {}]}


def test_a_level_of_other_channels_is_refused():
    with pytest.raises(ValueError, match='in_channels=99 for level 1'):
        fit(decode_head={'in_channels': 99, 'in_index': 1})


def test_a_neck_between():
    neck = {'type': 'LastLevelNeck', 'in_channels': [16, 32, 64]}
    change = {'in_channels': [12, 20, 56]}
    assert fit(neck=neck, head={'in_channels': 9}) == {'neck': change}
    assert fit(neck={**neck, 'groups': 9}, head={}) == {'neck': change}  # it never ran
    assert fit(neck={**neck, 'out_channels': 16, 'groups': 16}) is None  # 56 has no 16 groups
    assert fit(neck={**neck, 'in_channels': [1, 2, 3]}) is None
    assert consumers.levels_read({'neck': neck}, OLD, 'mmengine') == [False, False, True]


@pytest.mark.parametrize(
    'heads, read',
    [
        ({}, [True, True, True]),
        ({'head': {'in_channels': 64}}, [True, True, True]),
        ({'decode_head': {'in_index': -1}}, [False, False, True]),
        ({'decode_head': {'in_index': 2, 'c1_in_channels': 16}}, [True, False, True]),
        ({'head': [{'in_index': [1, 2]}], 'auxiliary_head': None}, [False, True, True]),
    ],
)
def test_levels_that_heads_read(heads, read):
    assert consumers.levels_read(heads, OLD, 'mmengine') == read


def test_heads_that_cannot_be_built_any_more():
    head = {'type': 'LastLevelNeck', 'in_channels': [16, 32, 64], 'out_channels': 16, 'groups': 16}
    change = {'head': {'in_channels': [12, 20, 56]}}
    assert not consumers.heads_build({'head': head}, change, 'mmengine')
    assert consumers.heads_build({'head': {**head, 'groups': 1}}, change, 'mmengine')
    bare = {**head, 'groups': 1, 'final_layer': None}
    assert not consumers.heads_build({'head': bare}, change, 'mmengine')
    assert consumers.heads_build({'head': {'type': 'Unheard'}}, change, 'mmengine')  # never built
