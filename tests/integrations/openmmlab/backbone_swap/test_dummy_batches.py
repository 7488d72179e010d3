"""Random batches have the form that each kind of model is trained with."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from ghost_plugin.integrations.openmmlab.backbone_swap import dummy_batches


def test_shapes_and_channels():
    codec = {'head': {'decoder': {'input_size': (192, 256)}}}
    assert dummy_batches.pose_shape(codec, 64) == (256, 192)
    assert dummy_batches.pose_shape({}, 64) == dummy_batches.square({}, 64) == (64, 64)
    assert dummy_batches.image_channels({'backbone': {}}, default=1) == 1
    assert dummy_batches.image_channels({'backbone': {'backbone': {'in_channels': 4}}}) == 4


def test_segmentation():
    part = {'backbone': {'in_channels': 1}, 'decode_head': {'num_classes': 1}}
    batch = dummy_batches.segmentation_batch(part, 32)
    assert [image.shape for image in batch['inputs']] == [(1, 32, 32)] * 2
    assert batch['data_samples'][0].gt_sem_seg.data.max() == 0


def test_classification():
    pytest.importorskip('mmpretrain')
    batch = dummy_batches.classification_batch({'type': 'ImageClassifier', 'backbone': {}}, 32)
    assert len(batch['inputs']) == 4 and batch['inputs'][0].shape == (3, 32, 32)
    views = dummy_batches.classification_batch({'type': 'SimCLR', 'backbone': {}}, 32)['inputs']
    assert [view.shape for view in views] == [(4, 3, 32, 32)] * 2


def test_detection():
    pytest.importorskip('mmdet')
    part = {'type': 'RetinaNet', 'bbox_head': {'num_classes': 1}, 'mask_head': {}}
    batch = dummy_batches.detection_batch(part, 64)
    sample = batch['data_samples'][0]
    assert batch['inputs'][0].shape == (3, 64, 64) and 'masks' in sample.gt_instances
    assert sample.gt_instances.labels.max() == 0 and len(sample.proposals) == 24
