"""Random images and labels in the form that each kind of model is trained with."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .config_tree import type_name

_MASKS = re.compile('mask|HeadIns|DetIns')  # in configs of models that learn from masks
_ROTATED = re.compile("'boxtype2tensor': False|'type': '[\\w.]*Rotated")
_CORNERS = re.compile('qbox|GVFixCoder')  # in configs of models that learn four corners
_KEYPOINTS = re.compile("'num_keypoints': (\\d+)")
_PERSON = (256, 128)  # height and width of an image of one person, pixels
_CLASSES = 2  # labels 0 and 1 exist in every head with classes


def detection_batch(part: Mapping, size: int) -> dict[str, Any]:
    """Two images with boxes, semantic labels, proposals, and masks where they are learned.

    Boxes are rotated for a model of MMRotate, whose preprocessor keeps the type of boxes, and for
    a rotated head of MMYOLO.

    Args:
        part: Config of the detector.
        size: Image size, pixels.
    """
    from mmdet.testing import demo_mm_inputs, demo_track_inputs
    from mmengine.structures import InstanceData

    if 'Track' in type_name(part.get('data_preprocessor')):
        shape = [(3, size, size)]
        return demo_track_inputs(1, 2, image_shapes=shape, num_classes=_CLASSES, with_mask=True)
    if _ROTATED.search(str(part)):
        return _rotated_batch(part, size)
    classes = _num_classes(part)
    keypoints = _KEYPOINTS.search(str(part))
    semantic = (part.get('roi_head') or {}).get('semantic_head')
    batch = demo_mm_inputs(
        2,
        [(3, size, size)] * 2,
        num_items=[3, 3],
        num_classes=_CLASSES,
        sem_seg_output_strides=8 if semantic else 1,
        with_mask=bool(_MASKS.search(str(part))),
        with_semantic=True,
        use_box_type=True,
    )
    for sample in batch['data_samples']:
        sample.gt_instances.labels %= classes
        if keypoints:
            rows = torch.ones(len(sample.gt_instances), int(keypoints[1]))
            sample.gt_instances.keypoints = size * torch.rand(*rows.shape, 2)
            sample.gt_instances.keypoints_visible = rows
        ignored = sample.ignored_instances
        ignored.labels = torch.zeros(len(ignored.bboxes), dtype=torch.long)
        sample.proposals = InstanceData(
            bboxes=sample.gt_instances.bboxes.tensor.repeat(8, 1), scores=torch.ones(24)
        )
    return batch


def _rotated_batch(part: Mapping, size: int) -> dict[str, Any]:
    from mmrotate.testing import demo_mm_inputs

    batch = demo_mm_inputs(
        2,
        [(3, size, size)] * 2,
        num_items=[3, 3],
        num_classes=_CLASSES,
        use_box_type=True,
        use_qbox=bool(_CORNERS.search(str(part))),
    )
    for sample in batch['data_samples']:
        sample.gt_instances.labels %= _num_classes(part)
    return batch


def _num_classes(part: Mapping) -> int:
    """Number of classes that all heads have, at most two."""
    return min([_CLASSES, *map(int, re.findall(r"'num_classes': (\d+)", str(part)))])


def collated(batch: Mapping) -> dict[str, Any]:
    """A batch as MMYOLO trains with it: all boxes and labels in one tensor.

    Args:
        batch: What :func:`detection_batch` returns.
    """
    from mmyolo.datasets.utils import yolov5_collate

    pairs = list(zip(batch['inputs'], batch['data_samples'], strict=True))
    for _, sample in pairs:
        if 'masks' in sample.gt_instances:
            sample.gt_instances.masks = sample.gt_instances.masks.to_tensor(torch.uint8, 'cpu')
    # Its augmentations, which are left out here, make images of floats.
    return yolov5_collate(
        [{'inputs': image.float(), 'data_samples': sample} for image, sample in pairs]
    )


def classification_batch(part: Mapping, size: int) -> dict[str, Any]:
    """Four labelled images, or two views of each for a model that learns without labels.

    Args:
        part: Config of the classifier.
        size: Image size, pixels.
    """
    from mmpretrain.structures import DataSample

    shape, sample = (size, size), DataSample
    if type_name(part) == 'BaseReID':  # its pooling kernel needs images of this size
        from mmdet.structures import ReIDDataSample

        shape, sample = _PERSON, ReIDDataSample
    channels = image_channels(part)
    images = [torch.randint(0, 256, (channels, *shape), dtype=torch.uint8) for _ in range(4)]
    samples = [sample().set_gt_label(index % _CLASSES) for index in range(4)]
    labelled = type_name(part) in ('ImageClassifier', 'BaseReID')
    views = images if labelled else [torch.stack(images)] * 2
    return {'inputs': views, 'data_samples': samples}


def image_channels(part: Mapping, default: int = 3) -> int:
    """Input channels of a model.

    Args:
        part: Config of the model with the backbone.
        default: Channels where the backbone names none.
    """
    backbone = part['backbone']
    inner = backbone.get('backbone')  # of a FeatureAdapter
    return (inner if isinstance(inner, Mapping) else backbone).get('in_channels', default)


def square(part: Mapping, size: int) -> tuple[int, int]:
    """Height and width (pixels) of square images.

    Args:
        part: Config of the model; not used.
        size: Image size, pixels.
    """
    return size, size


def segmentation_batch(part: Mapping, size: int) -> dict[str, Any]:
    """Two images with a class for every pixel.

    Args:
        part: Config of the segmentor.
        size: Image size, pixels.
    """
    from mmengine.structures import PixelData

    shape = (size, size)
    classes = _num_classes(part)
    samples = segmentation_samples(2, shape)
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, *shape)))
        sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *shape)))
    images = [torch.randint(0, 256, (image_channels(part), *shape), dtype=torch.uint8)] * 2
    return {'inputs': images, 'data_samples': samples}


def detection_samples(number: int, shape: tuple[int, int]) -> list:
    """Data samples without labels for detectors.

    Args:
        number: Images.
        shape: Height and width of an image, pixels.
    """
    from mmdet.structures import DetDataSample

    names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    info = {**dict.fromkeys(names, shape), 'scale_factor': (1.0, 1.0)}
    return [DetDataSample(metainfo=info) for _ in range(number)]


def segmentation_samples(number: int, shape: tuple[int, int]) -> list:
    """Data samples without labels for segmentors.

    Args:
        number: Images.
        shape: Height and width of an image, pixels.
    """
    from mmengine.structures import BaseDataElement

    info = {'img_shape': shape, 'ori_shape': shape, 'pad_shape': shape, 'padding_size': [0] * 4}
    return [BaseDataElement(metainfo=info) for _ in range(number)]


def pose_samples(number: int, shape: tuple[int, int]) -> list:
    """Data samples without labels for pose estimators: the whole image is the person.

    Args:
        number: Images.
        shape: Height and width of an image, pixels.
    """
    from mmengine.structures import InstanceData
    from mmpose.structures import PoseDataSample

    height, width = shape
    size = np.array([width, height], dtype=np.float32)
    info = {'img_shape': shape, 'ori_shape': shape, 'input_size': (width, height),
            'input_center': size / 2, 'input_scale': size}  # fmt: skip
    box = np.array([[0, 0, width, height]], dtype=np.float32)
    samples = [PoseDataSample(metainfo=info) for _ in range(number)]
    for sample in samples:
        sample.gt_instances = InstanceData(bboxes=box, bbox_scores=np.ones(1, dtype=np.float32))
    return samples


def _codec(part: Mapping) -> Mapping:
    head = part.get('head') or {}
    return head.get('decoder') or (head.get('pose_cfg') or {}).get('decoder') or {}


def pose_shape(part: Mapping, size: int) -> tuple[int, int]:
    """Height and width (pixels) that a pose estimator's codec asks for.

    Args:
        part: Config of the pose estimator.
        size: Image size where the codec names none, pixels.
    """
    width, height = _codec(part).get('input_size') or (size, size)
    return height, width


def pose_batch(part: Mapping, size: int) -> dict[str, Any]:
    """Two images with keypoints, heatmaps and labels along x and y.

    Args:
        part: Config of the pose estimator.
        size: Image size where its codec names none, pixels.
    """
    from mmengine.structures import InstanceData
    from mmpose.testing import get_packed_inputs

    if type_name(part) == 'BottomupPoseEstimator':
        return _bottom_up_batch(part, size)
    height, width = pose_shape(part, size)
    head, codec = part.get('head') or {}, _codec(part)
    keypoints = next((head[key] for key in ('out_channels', 'num_joints', 'num_keypoints')
                      if isinstance(head.get(key), int)), 17)  # fmt: skip
    levels = 1 + max(head.get('level_indices') or [0])  # of MSPN
    batch = get_packed_inputs(
        2,
        num_keypoints=keypoints,
        num_levels=levels,
        img_shape=(height, width),
        input_size=(width, height),
        heatmap_size=codec.get('heatmap_size') or (width // 4, height // 4),
        simcc_split_ratio=codec.get('simcc_split_ratio', 2.0),
    )
    for sample in batch['data_samples']:
        sample.set_metainfo({'flip_indices': list(range(keypoints))})
        if levels > 1:  # the pipeline's shape is (levels, 1, keypoints)
            weights = sample.gt_instance_labels.keypoint_weights.transpose(0, 1)
            sample.gt_instance_labels = InstanceData(keypoint_weights=weights)
    return batch


def _bottom_up_batch(part: Mapping, size: int) -> dict[str, Any]:
    """Two images of several persons, with the labels that MMPose's pipeline makes by the codec."""
    from mmengine.dataset import pseudo_collate
    from mmpose.datasets.transforms import BottomupGetHeatmapMask, GenerateTarget, PackPoseInputs

    height, width = pose_shape(part, size)
    codec = dict(_codec(part) or {'type': 'YOLOXPoseAnnotationProcessor'})
    targets, mask = GenerateTarget(encoder=codec), BottomupGetHeatmapMask()
    keypoints = part['head'].get('num_keypoints', 17)
    images = [_persons(height, width, keypoints, seed) for seed in range(2)]
    for image in images:
        if type_name(codec) == 'DecoupledHeatmap':
            del image['bbox']  # it wants the four corners, or makes them from the keypoints
        targets.transform(image)
        if 'heatmaps' in image:
            mask.transform(image)
            fields = image.get('field_mapping_table') or PackPoseInputs.field_mapping_table
            image['field_mapping_table'] = {**fields, 'heatmap_mask': 'heatmap_mask'}
    return pseudo_collate([PackPoseInputs().transform(image) for image in images])


def _persons(height: int, width: int, keypoints: int, seed: int) -> dict[str, Any]:
    """An image of three persons, as MMPose's pipeline holds it before its labels are made."""
    generator = np.random.default_rng(seed)
    low, size = generator.uniform(0, 0.4, (3, 1, 2)), generator.uniform(0.3, 0.5, (3, 1, 2))
    points = (low + size * generator.random((3, keypoints, 2))) * (width, height)
    boxes = np.concatenate((points.min(1), points.max(1)), axis=1)
    pixels = np.array([width, height], dtype=np.float32)
    return {
        'img': generator.integers(0, 256, (height, width, 3), dtype=np.uint8),
        'img_shape': (height, width),
        'ori_shape': (height, width),
        'input_size': (width, height),
        'input_center': pixels / 2,
        'input_scale': pixels,
        'keypoints': points.astype(np.float32),
        'keypoints_visible': np.ones((3, keypoints), dtype=np.float32),
        'bbox': boxes.astype(np.float32),
        'bbox_score': np.ones(3, dtype=np.float32),
        'area': np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float32),
        'category_id': [1] * 3,
        'flip_indices': list(range(keypoints)),
        'warp_mat': np.eye(2, 3, dtype=np.float32),  # without one OpenCV refuses the mask's type
    }
