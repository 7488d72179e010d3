"""Configs of MMSegmentation and MMPose are converted, trained and tested by the commands."""

import json

import pytest

pytest.importorskip('mmdet')

import cv2
import numpy as np

from ghost_plugin.integrations.openmmlab.backbone_swap import resolve

SEGMENTOR = 'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py'
OWN_IMAGES = ['--macs', '0.98', '--include', 'backbone.stage4*', '--loader', 'val', '--images', '2']
POSE = 'mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py'
# Eight images of bright discs; a pixel's class says if it is in the disc.
SEGMENTATION = """
_base_ = {base!r}
root = {root!r}
model = dict(data_preprocessor=dict(size=(64, 64)))
steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
images = dict(_delete_=True, type='BaseSegDataset', data_root=root, img_suffix='.png',
              metainfo=dict(classes=[str(i) for i in range(19)]), pipeline=steps,
              data_prefix=dict(img_path='images', seg_map_path='masks'))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=images)
train_dataloader, val_dataloader, test_dataloader = loader, loader, loader
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=3))
"""
# The middle and four points of the edge of a disc.
POSES = """
_base_ = {base!r}
root = {root!r}
codec = _base_.codec
model = dict(backbone=dict(init_cfg=None), head=dict(out_channels=5))
images = dict(_delete_=True, type='CocoDataset', data_root=root, data_mode='topdown',
              ann_file='points.json', data_prefix=dict(img='images/'),
              metainfo=dict(from_file={points!r}))
start = [dict(type='LoadImage'), dict(type='GetBBoxCenterScale'),
         dict(type='TopdownAffine', input_size=codec['input_size'])]
end = [dict(type='PackPoseInputs')]
learn = start + [dict(type='GenerateTarget', encoder=codec)] + end
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(pipeline=learn, **images), **loader)
val_dataloader = dict(dataset=dict(pipeline=start + end, test_mode=True, **images), **loader)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(_delete_=True, type='PCKAccuracy')
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(save_best=None, interval=1))
custom_hooks = []
"""


@pytest.fixture
def discs(tmp_path):
    """A folder of images, masks and key points of discs."""
    names = ('middle', 'top', 'right', 'bottom', 'left')
    category = {'id': 1, 'name': 'disc', 'keypoints': names, 'skeleton': []}
    found = {'images': [], 'annotations': [], 'categories': [category]}
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    for i in range(8):
        mask = np.zeros((64, 64), dtype=np.uint8)
        x, y, r = 20 + 3 * i, 40 - 2 * i, 10
        cv2.circle(mask, (x, y), r, 1, -1)
        cv2.imwrite(str(tmp_path / f'masks/{i}.png'), mask)
        cv2.imwrite(str(tmp_path / f'images/{i}.png'), np.repeat(200 * mask[..., None], 3, 2))
        points = [x, y, 2, x, y - r, 2, x + r, y, 2, x, y + r, 2, x - r, y, 2]
        found['images'].append({'id': i, 'file_name': f'{i}.png', 'height': 64, 'width': 64})
        found['annotations'].append({
            'id': i, 'image_id': i, 'category_id': 1, 'iscrowd': 0, 'area': 314.0,
            'bbox': [x - r, y - r, 2 * r, 2 * r], 'keypoints': points, 'num_keypoints': 5,
        })  # fmt: skip
    (tmp_path / 'points.json').write_text(json.dumps(found))
    rows = {i: dict(name=n, id=i, color=[0] * 3, type='', swap='') for i, n in enumerate(names)}
    info = dict(dataset_name='discs', keypoint_info=rows, skeleton_info={},
                joint_weights=[1.0] * 5, sigmas=[0.05] * 5)  # fmt: skip
    (tmp_path / 'points.py').write_text(f'dataset_info = {info!r}')
    return tmp_path


@pytest.mark.parametrize(
    ('name', 'text', 'checkpoint', 'metric', 'plan'),
    [
        (SEGMENTOR, SEGMENTATION, 'iter_3.pth', 'mIoU', ['--ratio', '2']),
        (POSE, POSES, 'epoch_1.pth', 'PCK', OWN_IMAGES),
    ],
)
def test_a_converted_config_is_trained_and_tested(
    ok, environ, discs, name, text, checkpoint, metric, plan
):
    pytest.importorskip(f'{name.partition(":")[0]}.models', exc_type=Exception)
    dense, config, work = discs / 'dense.py', discs / 'converted.py', discs / 'run'
    points = str(discs / 'points.py')
    dense.write_text(text.format(base=resolve(name), root=f'{discs}/', points=points))
    assert 'converted.plan.json' in ok('convert', dense, *plan, '-o', config)
    ok('train', config, '--work-dir', work)
    result = discs / 'metrics.json'
    ok('test', config, work / checkpoint, '--work-dir', work, '--json', result)
    assert json.loads(result.read_text())[metric] >= 0
