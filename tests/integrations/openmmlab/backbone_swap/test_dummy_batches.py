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


def test_keypoints_of_a_detector():
    pytest.importorskip('mmdet')
    part = {'type': 'YOLODetector', 'bbox_head': {'num_keypoints': 5}}
    instances = dummy_batches.detection_batch(part, 64)['data_samples'][0].gt_instances
    assert instances.keypoints.shape == (3, 5, 2)


def test_samples_without_labels():
    pytest.importorskip('mmdet')
    for make in (dummy_batches.detection_samples, dummy_batches.segmentation_samples):
        samples = make(2, (32, 48))
        assert [sample.img_shape for sample in samples] == [(32, 48)] * 2
        assert 'gt_instances' not in samples[0]


def test_samples_of_persons():
    pytest.importorskip('mmpose.models', exc_type=Exception)
    sample = dummy_batches.pose_samples(2, (32, 48))[1]
    assert sample.input_size == (48, 32) and sample.input_center.tolist() == [24, 16]
    assert sample.gt_instances.bboxes.tolist() == [[0, 0, 48, 32]]


@pytest.mark.parametrize(
    ('head', 'fields', 'labels'),
    [
        (
            {'decoder': {'type': 'SPR', 'heatmap_size': (16, 16)}},
            {'heatmaps': (1, 16, 16), 'heatmap_mask': (1, 16, 16), 'displacements': (10, 16, 16)},
            {},
        ),
        (
            {'decoder': {'type': 'DecoupledHeatmap', 'heatmap_size': (16, 16)}},
            {'heatmaps': (6, 16, 16)},
            {'instance_coords': (3, 2)},
        ),
        ({}, {}, {'bboxes': (3, 4), 'keypoints': (3, 5, 2), 'areas': (3,)}),
    ],
)
def test_labels_of_several_persons(head, fields, labels):
    pytest.importorskip('mmpose.models', exc_type=Exception)
    if head:
        head = {'decoder': {**head['decoder'], 'input_size': (64, 64)}}
    part = {'type': 'BottomupPoseEstimator', 'head': {'num_keypoints': 5, **head}}
    batch = dummy_batches.pose_batch(part, 64)
    assert [image.shape for image in batch['inputs']] == [(3, 64, 64)] * 2
    sample = batch['data_samples'][1]
    for name, shape in fields.items():
        assert getattr(sample.gt_fields, name).shape == shape
    for name, shape in labels.items():
        assert getattr(sample.gt_instance_labels, name).shape == shape
