"""One config of each kind, swapped, written, read back, trained a step and asked to predict."""

import json

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from ghost_plugin.integrations.openmmlab.backbone_swap import (
    load_config,
    refuse_python_style,
    swap_backbone,
    write_config,
)
from ghost_plugin.integrations.openmmlab.backbone_swap.schedule import preprocessor_change
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import (
    build,
    smoke_test,
    train_and_predict,
)
from ghost_plugin.integrations.openmmlab.feature_adapter import FeatureAdapter

GHOST = 'ghost_plugin.GhostNet'
MAPS, CHANNELS = [4, 8, 16, 32], [12, 20, 56, 80]  # of GhostNet 0.5x


def swapped(source, folder, backbone=GHOST, backbone_args=None, **options):
    """The config of a swap as it was written, and the swap."""
    args = {'width': 0.5} if backbone_args is None else backbone_args
    swap = swap_backbone(load_config(source), backbone, args, **options)
    return write_config(folder / 'mine.py', [source], swap.change), swap


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


@pytest.mark.parametrize('kind', RUN)
def test_swapped_config_survives_and_trains(kind, tmp_path):
    cfg, _ = swapped(RUN[kind], tmp_path)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()
    assert len((tmp_path / 'mine.py').read_text().splitlines()) < 60
    detector = RUN[kind].startswith('mmdet')
    train_and_predict(*build(cfg), size=128 if detector else 32)


@pytest.mark.parametrize(
    'source, parts',
    [
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
    ],
)  # fmt: skip
def test_channels_reach_the_parts_that_read_maps(source, parts, tmp_path):
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


def test_python_style_is_refused(tmp_path):
    path = tmp_path / 'lazy.py'
    path.write_text(
        'from mmengine.config import read_base\nwith read_base():\n    pass\nmodel = {}'
    )
    with pytest.raises(ValueError, match='Python style'):
        refuse_python_style(path)


@pytest.mark.parametrize(
    'name, said',
    [
        ('child.py', 'would inherit itself'),
        ('base.py', 'would inherit itself'),
        ('foreign.py', 'not made by this tool'),
        ('out.yaml', 'a config ends in .py'),
        ('out', 'a config ends in .py'),
    ],
)
def test_configs_of_the_user_are_never_written_over(name, said, tmp_path):
    given = {'base.py': 'x = 1', 'child.py': "_base_ = 'base.py'", 'foreign.py': 'y = 1'}
    for file, text in given.items():
        (tmp_path / file).write_text(text)
    with pytest.raises((ValueError, FileExistsError), match=said):
        write_config(tmp_path / name, [str(tmp_path / 'child.py')], {'z': 1})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == given


def test_what_the_tool_made_it_makes_anew(tmp_path):
    (tmp_path / 'base.py').write_text('x = 1')
    for value in (1, 2):
        made = write_config(tmp_path / 'a/mine.py', [str(tmp_path / 'base.py')], {'x': value})
        assert made.x == value
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['mine.py']


@pytest.mark.parametrize(
    'backbone, options, channels',
    [
        ('GhostNetV2', {'width': 1.0, 'frozen_stages': 1}, [24, 40, 112, 160]),
        ('GhostNetV3', {'width': 0.5, 'output_stride': 16}, CHANNELS),
        ('GGhostRegNet', {'arch': '002'}, [24, 56, 152, 368]),
    ],
)
def test_every_family_fits(backbone, options, channels, tmp_path):
    source = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    cfg, _ = swapped(source, tmp_path, f'ghost_plugin.{backbone}', options)
    assert cfg.model.neck.in_channels == channels
    assert {key: cfg.model.backbone[key] for key in options} == options


def test_a_check_that_fails_says_whether_the_original_runs(tmp_path):
    source = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    cfg, _ = swapped(source, tmp_path)
    cfg.model.head.loss.type = 'NoLoss'
    with pytest.raises(ValueError, match='NoLoss is not in the mmpretrain'):
        smoke_test(load_config(source), cfg, 32)
    cfg.model.head = dict(load_config(source).model.head, in_channels=7)
    with pytest.raises(ValueError, match=r'does not run: .*; the config as it was runs'):
        smoke_test(load_config(source), cfg, 32)


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
    look = swapped(source, tmp_path, pretrained='ghost.pth')[0].model.data_preprocessor
    assert look.mean == [123.675, 116.28, 103.53] and look.bgr_to_rgb


RGB = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}


@pytest.mark.parametrize(
    'old, new',
    [
        ({'type': 'DetDataPreprocessor', 'pad_size_divisor': 32}, {**RGB, 'bgr_to_rgb': True}),
        ({'type': 'mmdet.DetDataPreprocessor', **RGB}, {**RGB, 'bgr_to_rgb': True}),
        ({'type': 'DetDataPreprocessor', 'rgb_to_bgr': True},
         {**RGB, 'bgr_to_rgb': True, 'rgb_to_bgr': False}),
        ({'num_classes': 10}, {**RGB, 'to_rgb': True}),
        ({'mean': RGB['mean'], 'std': [1, 1, 1], 'to_rgb': True}, {**RGB, 'to_rgb': True}),
        ({**{key: tuple(value) for key, value in RGB.items()}, 'to_rgb': True}, None),
        ({'type': 'MultiBranchDataPreprocessor', 'data_preprocessor': {**RGB, 'bgr_to_rgb': False}},
         {'data_preprocessor': {**RGB, 'bgr_to_rgb': True}}),
    ],
)  # fmt: skip
def test_pretrained_weights_get_the_pictures_that_they_know(old, new):
    assert preprocessor_change(old) == (new or {})


def test_unnormalised_pictures_are_normalised_for_pretrained_weights(tmp_path):
    cfg, swap = swapped(RUN['yolox-pafpn'], tmp_path, pretrained='ghost.pth')
    assert (
        cfg.model.data_preprocessor.mean == RGB['mean'] and cfg.model.data_preprocessor.bgr_to_rgb
    )
    assert any('mean, std and colours' in remark for remark in swap.remarks)
    grey = swapped(RUN['grey'], tmp_path / 'grey', pretrained='ghost.pth')[0]
    assert grey.data_preprocessor == load_config(RUN['grey']).data_preprocessor


def test_levels_are_made_and_matched():
    backbone = {'type': GHOST, 'width': 0.5, 'out_indices': (2, 4)}
    given, strides = [(20, 8), (80, 32)], [8, 8, 32, 128]
    cfg = {'type': 'ghost_plugin.FeatureAdapter', 'backbone': backbone, 'given': given}
    plain = MODELS.build({**cfg, 'strides': strides})
    assert isinstance(plain, FeatureAdapter)
    maps = plain(torch.randn(2, 3, 128, 128))
    assert [one.shape[1:] for one in maps] == [(20, 16, 16)] * 2 + [(80, 4, 4), (80, 1, 1)]
    wide = MODELS.build({**cfg, 'strides': strides, 'channels': [20, 9, 80, 7]})
    assert [one.shape[1] for one in wide(torch.randn(2, 3, 64, 64))] == [20, 9, 80, 7]
    with pytest.raises(ValueError, match=r'strides must be among \[8, 32\].*got \[4\]'):
        FeatureAdapter(backbone, given, [4, 8])


def test_costs_stand_side_by_side(tmp_path):
    source = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    cfg, _ = swapped(source, tmp_path, backbone_args={'width': 1.0})
    rows = {row['part']: row for row in smoke_test(load_config(source), cfg, 224)}
    assert (rows['whole']['params'], rows['whole']['macs']) == (11_689_512, 1_814_073_344)
    assert rows['head']['new_params'] == 961_000
    for key in ('params', 'macs', 'new_params', 'new_macs'):
        assert sum(row[key] for part, row in rows.items() if part != 'whole') == rows['whole'][key]
    json.dumps(list(rows.values()))


def test_costs_of_a_stem_that_rearranges_pixels(tmp_path):
    source = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
    rows = smoke_test(load_config(source), swapped(source, tmp_path)[0], 64)
    assert all(row['macs'] > 0 for row in rows)
