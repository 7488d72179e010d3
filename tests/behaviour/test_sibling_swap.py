"""Configs of MMRotate and MMYOLO with our backbone train a step and predict."""

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
]


@pytest.mark.parametrize('name', CONFIGS)
def test_rotated_and_yolo_detectors(name):
    package = name.partition(':')[0]
    pytest.importorskip(f'{package}.models', exc_type=Exception)
    cfg = load_config(name)
    swap = swap_backbone(cfg, 'ghost_plugin.GhostNet', {'width': 0.5})
    new = Config(Config._merge_a_into_b(copy.deepcopy(swap.change), cfg.to_dict()))
    model, part = build(new)
    assert train_and_predict(model, part) > 0
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n in missing if n.startswith('backbone')]
