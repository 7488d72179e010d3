"""Models of MMDetection's siblings are planned, converted and distilled."""

import copy

import pytest

pytest.importorskip('mmdet')

import torch
from mmengine.registry import MODELS, init_default_scope

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab import model_from_config
from ghost_plugin.integrations.openmmlab.backbone_swap import load_config
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import (
    light_config,
    train_and_predict,
)

SEGMENTOR = 'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py'
POSE = 'mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py'
ROTATED = 'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'
YOLO = 'mmyolo::yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py'


def skip_without(name):
    pytest.importorskip(f'{name.partition(":")[0]}.models', exc_type=Exception)


def light(name):
    """The model's config, without checkpoints, and its scope."""
    skip_without(name)
    cfg = load_config(name)
    init_default_scope(cfg.default_scope)
    return light_config(cfg)


@pytest.mark.parametrize('name', [SEGMENTOR, POSE, ROTATED, YOLO])
@pytest.mark.parametrize('plan', [{'ratio': 2}, {'macs': 0.7}])
def test_converted(name, plan):
    part = light(name)
    if plan == {'macs': 0.7} and name == ROTATED:
        pytest.skip('as the one above, and slow')
    cfg = dict(type='ghost_plugin.Converted', model=copy.deepcopy(part), plan=plan)
    model = MODELS.build(cfg)
    model.init_weights()
    assert sum(isinstance(module, gp.GhostConv2d) for module in model.modules()) > 3
    assert train_and_predict(model, part) > 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_images_of_a_pose_estimator_have_the_size_that_its_config_names():
    skip_without(POSE)
    model, preprocessing, as_input = model_from_config.build(POSE)
    assert preprocessing.size == (256, 192)
    example = as_input(torch.zeros(2, 3, 256, 192))
    assert example['mode'] == 'tensor' and example['data_samples'][1].input_size == (192, 256)
    assert [tuple(x.shape) for x in model.eval()(**example)] == [(2, 17, 384), (2, 17, 512)]


def test_all_heads_of_a_segmentor_get_its_classes():
    skip_without(SEGMENTOR)
    model, _, as_input = model_from_config.build(SEGMENTOR, num_classes=3)
    heads = [model.decode_head, *model.auxiliary_head]
    assert {head.num_classes for head in heads} == {3}
    assert model.eval()(**as_input(torch.zeros(1, 3, 64, 64))).shape[:2] == (1, 3)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (SEGMENTOR, {'logits': ['decode_head.conv_seg']}),
        (POSE, {'features': ['head.final_layer']}),
        (YOLO, {'features': ['neck']}),
    ],
)
def test_distilled(name, options):
    part = light(name)
    cfg = dict(type='ghost_plugin.Distilled', student=copy.deepcopy(part),
               teacher=copy.deepcopy(part), **options)  # fmt: skip
    model = MODELS.build(cfg)
    model.init_weights()
    assert train_and_predict(model, part) > 0
