"""Levels of a new backbone take the place of the old ones."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from mmengine.model import BaseModule
from mmengine.registry import MODELS

from ghost_plugin.integrations.openmmlab.backbone_swap.detectors import change, choose_levels

GHOST = {'type': 'ghost_plugin.GhostNet', 'width': 0.5}
PLAIN = {'backbone': {}}
DILATED = {'backbone': {'dilations': (1, 1, 2, 4)}}


@pytest.mark.parametrize(
    'part, strides, new, levels',
    [
        (PLAIN, (4, 8, 16, 32), {}, {4: 1, 8: 2, 16: 3, 32: 4}),
        (PLAIN, (8, 16, 32, 64), {}, {8: 2, 16: 3, 32: 4, 64: 4}),
        (PLAIN, (2, 4, 8, 16), {}, {2: 0, 4: 1, 8: 2, 16: 3}),
        (PLAIN, (2, 4, 8, 16), {'output_stride': 16}, {2: 0, 4: 1, 8: 2, 16: 4}),
        (DILATED, (4, 8, 8, 8), {}, {4: 1, 8: 4}),
    ],
)
def test_the_last_level_of_each_stride_is_chosen(part, strides, new, levels):
    assert choose_levels(part, [(16, stride) for stride in strides], new) == levels


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match=r'strides \[1\].*--out-indices'):
        choose_levels(PLAIN, [(16, 1)], {})


def test_a_reader_of_fixed_channels_gets_them_by_1x1_convs():
    part = {'type': 'X', 'backbone': {**GHOST, 'width': 1.0}, 'roi_head': {'shared_head': {}}}
    new, remarks = change(part, GHOST, 'mmengine', projections=True, last_level=False)
    assert new['backbone']['type'] == 'ghost_plugin.FeatureAdapter'
    assert new['backbone']['channels'] == [24, 40, 112, 160]
    assert '1x1 convs make' in remarks[-1]
    with pytest.raises(ValueError, match='change it by hand'):
        change(part, GHOST, 'mmengine', projections=False, last_level=False)


def test_a_head_of_stages_gets_the_maps_of_one():
    old = {**GHOST, 'width': 1.0, 'out_indices': (1, 2)}
    part = {'type': 'X', 'backbone': old, 'head': {'type': 'MSPNHead', 'unit_channels': 40}}
    new, _ = change(part, GHOST, 'mmengine', projections=True, last_level=True)
    assert new['backbone']['nested'] and new['backbone']['channels'] == [24, 40]


@MODELS.register_module(force=True)
class DeepestFirst(BaseModule):
    """Returns the level of stride 16 before that of stride 4, as MSPN does."""

    def forward(self, x):
        return x.new_zeros(1, 8, 8, 8), x.new_zeros(1, 9, 32, 32)


def test_levels_keep_their_order():
    part = {'type': 'X', 'backbone': {'type': 'DeepestFirst'}, 'head': {}}
    new, _ = change(part, GHOST, 'mmengine', projections=True, last_level=True)
    assert new['backbone']['strides'] == [16, 4] and new['backbone']['channels'] == [8, 9]


def test_another_number_of_levels_is_refused():
    part = {'type': 'X', 'backbone': {**GHOST, 'width': 1.0}, 'bbox_head': {}}
    with pytest.raises(ValueError, match=r'bbox_head wants 4 levels .* give 4 with --out-indices'):
        change(part, {**GHOST, 'out_indices': (4,)}, 'mmengine', projections=True, last_level=False)
