"""Made-up images and labels in the form that each kind of model is trained with."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .config_tree import type_of

_MASKS = re.compile('mask|HeadIns|DetIns')  # in the config of whatever learns from masks
_PERSON = (256, 128)  # height and width of a cut-out person, pixels
_CLASSES = 2  # labels 0 and 1 exist in every head with classes


def detection_batch(part: Mapping, side: int) -> dict[str, Any]:
    """Two pictures with boxes, a map of classes, proposals, and masks where they are learned.

    Args:
        part: Config of the detector.
        side: Of the pictures, pixels.
    """
    from mmdet.testing import demo_mm_inputs, demo_track_inputs
    from mmengine.structures import InstanceData

    if 'Track' in type_of(part.get('data_preprocessor')):
        shape = [(3, side, side)]
        return demo_track_inputs(1, 2, image_shapes=shape, num_classes=_CLASSES, with_mask=True)
    classes = min(_CLASSES, *values(part, 'num_classes'), _CLASSES)
    semantic = (part.get('roi_head') or {}).get('semantic_head')
    batch = demo_mm_inputs(
        2,
        [(3, side, side)] * 2,
        num_items=[3, 3],
        num_classes=_CLASSES,
        sem_seg_output_strides=8 if semantic else 1,
        with_mask=bool(_MASKS.search(str(part))),
        with_semantic=True,
        use_box_type=True,
    )
    for sample in batch['data_samples']:
        sample.gt_instances.labels %= classes
        sample.proposals = InstanceData(
            bboxes=sample.gt_instances.bboxes.tensor.repeat(8, 1), scores=torch.ones(24)
        )
    return batch


def values(node: Any, key: str) -> Iterator[int]:
    """Every whole number that stands under a key in a tree of dicts and lists."""
    if isinstance(node, Mapping):
        if isinstance(node.get(key), int):
            yield node[key]
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            yield from values(item, key)


def classification_batch(part: Mapping, side: int) -> dict[str, Any]:
    """Four labelled pictures, or two views of each for a model that learns without labels."""
    from mmpretrain.structures import DataSample

    shape, sample = (side, side), DataSample
    if type_of(part) == 'BaseReID':  # persons, by a kernel of a fixed size
        from mmdet.structures import ReIDDataSample

        shape, sample = _PERSON, ReIDDataSample
    channels = image_channels(part)
    pictures = [torch.randint(0, 256, (channels, *shape), dtype=torch.uint8) for _ in range(4)]
    samples = [sample().set_gt_label(index % _CLASSES) for index in range(4)]
    views = pictures if is_labelled(part) else [torch.stack(pictures)] * 2
    return {'inputs': views, 'data_samples': samples}


def image_channels(part: Mapping) -> int:
    """Channels of the pictures of a detector or classifier."""
    backbone = part['backbone']
    return backbone.get('backbone', backbone).get('in_channels', 3)


def is_labelled(part: Mapping) -> bool:
    """Whether a classifier learns from labels, not from views of a picture."""
    return type_of(part) in ('ImageClassifier', 'BaseReID')


def square(part: Mapping, size: int) -> tuple[int, int]:
    """Height and width of images whose size is free, pixels."""
    return size, size


def segmentation_batch(part: Mapping, size: int) -> dict[str, Any]:
    """Two images with a class for every pixel.

    Args:
        part: Config of the segmentor.
        size: Of the images, pixels.
    """
    from mmengine.structures import BaseDataElement, PixelData

    shape = (size, size)
    info = {'img_shape': shape, 'ori_shape': shape, 'pad_shape': shape, 'padding_size': [0] * 4}
    classes = min(_CLASSES, *values(part, 'num_classes'), _CLASSES)
    samples = []
    for _ in range(2):
        sample = BaseDataElement(metainfo=info)
        sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, *shape)))
        sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *shape)))
        samples.append(sample)
    images = [torch.randint(0, 256, (image_channels(part), *shape), dtype=torch.uint8)] * 2
    return {'inputs': images, 'data_samples': samples}


def _codec(part: Mapping) -> Mapping:
    head = part.get('head') or {}
    return head.get('decoder') or (head.get('pose_cfg') or {}).get('decoder') or {}


def pose_shape(part: Mapping, size: int) -> tuple[int, int]:
    """Height and width of the images that a pose estimator's codec asks for, pixels."""
    width, height = _codec(part).get('input_size') or (size, size)
    return height, width


def pose_batch(part: Mapping, size: int) -> dict[str, Any]:
    """Two images with keypoints, heatmaps and labels along x and y.

    Args:
        part: Config of the pose estimator.
        size: Of the images where its codec names none, pixels.
    """
    from mmpose.testing import get_packed_inputs

    height, width = pose_shape(part, size)
    head, codec = part.get('head') or {}, _codec(part)
    keypoints = next((head[key] for key in ('out_channels', 'num_joints', 'num_keypoints')
                      if isinstance(head.get(key), int)), 17)  # fmt: skip
    batch = get_packed_inputs(
        2,
        num_keypoints=keypoints,
        img_shape=(height, width),
        input_size=(width, height),
        heatmap_size=codec.get('heatmap_size') or (width // 4, height // 4),
        simcc_split_ratio=codec.get('simcc_split_ratio', 2.0),
    )
    for sample in batch['data_samples']:
        sample.set_metainfo({'flip_indices': list(range(keypoints))})
    return batch
