"""The smoke test compares costs, and names the cause where a model does not run."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import json

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from helpers.swaps import swapped

from ghost_plugin.integrations.openmmlab.backbone_swap import load_config
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import smoke_test


def test_a_check_that_fails_says_whether_the_original_runs(tmp_path):
    source = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    cfg, _ = swapped(source, tmp_path)
    cfg.model.head.loss.type = 'NoLoss'
    with pytest.raises(ValueError, match='NoLoss is not in the mmpretrain'):
        smoke_test(load_config(source), cfg, 32)
    cfg.model.head = dict(load_config(source).model.head, in_channels=7)
    with pytest.raises(ValueError, match=r'does not run: .*; the config as it was runs'):
        smoke_test(load_config(source), cfg, 32)


def test_costs_stand_side_by_side(tmp_path):
    source = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    cfg, _ = swapped(source, tmp_path, backbone_args={'width': 1.0})
    rows = {row['part']: row for row in smoke_test(load_config(source), cfg, 224)}
    assert (rows['whole']['params'], rows['whole']['macs']) == (11_689_512, 1_814_073_344)
    assert rows['head']['new_params'] == 961_000
    for key in ('params', 'macs', 'new_params', 'new_macs'):
        assert sum(row[key] for part, row in rows.items() if part != 'whole') == rows['whole'][key]
    json.dumps(list(rows.values()))


@pytest.mark.slow
def test_costs_of_a_stem_that_rearranges_pixels(tmp_path):
    source = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
    rows = smoke_test(load_config(source), swapped(source, tmp_path)[0], 64)
    assert all(row['macs'] > 0 for row in rows)
