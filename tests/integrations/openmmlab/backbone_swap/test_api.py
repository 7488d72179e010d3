"""One config of each kind, swapped, written, read back, trained a step and asked to predict."""

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from helpers.swaps import GHOST, swapped
from mmengine.config import Config

from ghost_plugin.integrations.openmmlab.backbone_swap import load_config, swap_backbone
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import (
    build,
    train_and_predict,
)

CHANNELS = [12, 20, 56, 80]  # of GhostNet 0.5x, strides 4 to 32
slow = pytest.mark.slow
FAST = ('fpn', 'scores')
RUN = {
    'fpn': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'pafpn': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox-pafpn': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'yolov3': 'mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
    'rpn-c4': 'mmdet::rpn/rpn_r50-caffe-c4_1x_coco.py',
    'dilated': 'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'list-of-necks': 'mmdet::libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py',
    'mapper': 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'linear': 'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'tokens': 'mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py',
    'scores': 'mmpretrain::vgg/vgg11_8xb32_in1k.py',
    'pyramid': 'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py',
    'grey': 'mmpretrain::lenet/lenet5_mnist.py',
}


@pytest.mark.parametrize(
    'kind', [pytest.param(kind, marks=[slow] * (kind not in FAST)) for kind in RUN]
)
def test_swapped_config_survives_and_trains(kind, tmp_path):
    cfg, _ = swapped(RUN[kind], tmp_path)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()
    assert len((tmp_path / 'mine.py').read_text().splitlines()) < 60
    detector = RUN[kind].startswith('mmdet')
    train_and_predict(*build(cfg), size=128 if detector else 32)


READERS = [
        ('nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py', {'neck.in_channels': CHANNELS}),
        ('pafpn/faster-rcnn_r50_pafpn_1x_coco.py', {'neck.in_channels': CHANNELS}),
        ('yolo/yolov3_d53_8xb8-320-273e_coco.py', {'neck.in_channels': [80, 56, 20]}),
        (
            'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
            {'panoptic_head.in_channels': CHANNELS},
        ),
        (
            'faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py',
            {
                'backbone.output_stride': 16,
                'rpn_head.in_channels': 80,
                'roi_head.bbox_roi_extractor.out_channels': 80,
                'roi_head.bbox_head.in_channels': 80,
            },
        ),
        ('mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py', {'backbone.channels': [1024]}),
        (
            'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
            {'detector.neck.in_channels': CHANNELS},
        ),
        ('ssd/ssd300_coco.py', {'neck.in_channels': [20, 56],
                                'bbox_head.in_channels': [20, 56, 512, 256, 256, 256]}),
        ('cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py', {'backbone.strides': [4, 4]}),
]  # fmt: skip
FAST_READERS = ('dc5', 'c4', 'soft_teacher')


@pytest.mark.parametrize(
    'source, parts',
    [
        pytest.param(*row, marks=[slow] * (not any(f in row[0] for f in FAST_READERS)))
        for row in READERS
    ],
)
def test_channels_reach_the_parts_that_read_levels(source, parts, tmp_path):
    cfg, _ = swapped(f'mmdet::{source}', tmp_path)
    for place, value in parts.items():
        node = cfg.model
        for key in place.split('.'):
            node = node[key]
        assert node == value, place


def test_cifar_network_keeps_its_resolution(tmp_path):
    cfg, _ = swapped('mmpretrain::resnet/resnet18_8xb16_cifar10.py', tmp_path)
    assert cfg.model.backbone.stem_stride == 1


@pytest.mark.parametrize(
    'source, said',
    [
        ('mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py', 'three branches'),
        ('mmdet::detectors/cascade-rcnn_r50-rfp_1x_coco.py', 'cascade-rcnn_r50-sac'),
        ('mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py', 'hides patches'),
        ('mmpretrain::ofa/ofa-base_finetuned_caption.py', 'OFA of this config has no'),
    ],
)
def test_what_cannot_be_swapped_is_refused_in_a_line(source, said):
    with pytest.raises(ValueError, match=said) as caught:
        swap_backbone(load_config(source), GHOST)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'backbone, options, channels',
    [
        pytest.param(
            'GhostNetV2', {'width': 1.0, 'frozen_stages': 1}, [24, 40, 112, 160], marks=slow
        ),
        pytest.param('GhostNetV3', {'width': 0.5, 'output_stride': 16}, CHANNELS, marks=slow),
        ('GGhostRegNet', {'arch': '002'}, [24, 56, 152, 368]),
    ],
)
def test_every_backbone_fits(backbone, options, channels, tmp_path):
    source = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    cfg, _ = swapped(source, tmp_path, f'ghost_plugin.{backbone}', options)
    assert cfg.model.neck.in_channels == channels
    assert {key: cfg.model.backbone[key] for key in options} == options


@slow
def test_training_follows_the_backbone(tmp_path):
    source = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
    cfg, swap = swapped(source, tmp_path, pretrained='ghost.pth', lr_scale=2, backbone_lr=0.1)
    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer.lr == pytest.approx(2 * load_config(source).optim_wrapper.optimizer.lr)
    assert wrapper.constructor == 'DefaultOptimWrapperConstructor'
    assert 'decay_rate' not in wrapper.paramwise_cfg
    assert wrapper.paramwise_cfg.custom_keys.backbone.lr_mult == 0.1
    assert cfg.model.backbone.init_cfg.checkpoint == 'ghost.pth'
    assert any('layers of the old backbone' in remark for remark in swap.remarks)
    with pytest.raises(ValueError, match='--lr-scale must be above 0'):
        swap_backbone(cfg, GHOST, lr_scale=0)


def test_caffe_colours_become_those_of_our_weights(tmp_path):
    source = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
    new = swapped(source, tmp_path, pretrained='ghost.pth')[0].model.data_preprocessor
    assert new.mean == [123.675, 116.28, 103.53] and new.bgr_to_rgb


@slow
def test_unnormalised_images_are_normalised_for_pretrained_weights(tmp_path):
    cfg, swap = swapped(RUN['yolox-pafpn'], tmp_path, pretrained='ghost.pth')
    assert (
        cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
        and cfg.model.data_preprocessor.bgr_to_rgb
    )
    assert any('mean, std and colours' in remark for remark in swap.remarks)
    grey = swapped(RUN['grey'], tmp_path / 'grey', pretrained='ghost.pth')[0]
    assert grey.data_preprocessor == load_config(RUN['grey']).data_preprocessor


def test_arguments_of_the_backbone_as_keywords_are_deprecated():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    with pytest.warns(FutureWarning, match='backbone_args='):
        old = swap_backbone(cfg, GHOST, width=0.5)
    assert old == swap_backbone(cfg, GHOST, {'width': 0.5})
