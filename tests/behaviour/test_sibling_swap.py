"""Configs of MMDetection's siblings with our backbone train a step and predict."""

import copy

import pytest

pytest.importorskip('mmdet')

from mmengine.config import Config

from ghost_plugin.integrations.openmmlab.backbone_swap import load_config, swap_backbone
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import build, train_and_predict

CONFIGS = [
    'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
    'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
    'mmyolo::yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py',
    'mmyolo::yolov5/ins_seg/yolov5_ins_n-v61_syncbn_fast_8xb16-300e_coco_instance.py',
    'mmyolo::yolox/yolox_tiny_fast_8xb8-300e_coco.py',
    'mmseg::cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py',
    'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_mspn50_8xb32-210e_coco-256x192.py',
    'mmpose::body_2d_keypoint/simcc/coco/simcc_vipnas-mbv3_8xb64-210e_coco-256x192.py',
    'mmpose::body_2d_keypoint/rtmo/body7/rtmo-t_8xb32-600e_body7-416x416.py',
]
# Backbones that return other feature maps in training, and several networks in a row.
REFUSED = [
    ('mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', '3 feature maps in training'),
    (
        'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_2xmspn50_8xb32-210e_coco-256x192.py',
        '2 networks one behind the other',
    ),
]


@pytest.mark.parametrize('name', CONFIGS)
def test_swapped(name):
    package = name.partition(':')[0]
    pytest.importorskip(f'{package}.models', exc_type=Exception)
    cfg = load_config(name)
    swap = swap_backbone(cfg, 'ghost_plugin.GhostNet', {'width': 0.5})
    new = Config(Config._merge_a_into_b(copy.deepcopy(swap.change), cfg.to_dict()))
    model, part = build(new)
    assert train_and_predict(model, part) > 0
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n in missing if n.startswith('backbone')]


@pytest.mark.parametrize(('name', 'said'), REFUSED)
def test_refused(name, said):
    pytest.importorskip(f'{name.partition(":")[0]}.models', exc_type=Exception)
    with pytest.raises(ValueError, match=said):
        swap_backbone(load_config(name), 'ghost_plugin.GhostNet', {'width': 0.5})
