"""The quickstart's detector: MMDetection's own RetinaNet with GhostNet 0.5x, our data, schedule."""

from pathlib import Path

RETINANET = 'mmdet::_base_/models/retinanet_r50_fpn.py'
PARTS = ('datasets/digits_detection.py', 'schedules/adamw.py', 'runtime_detection.py')
# A small head for small pictures, with norms because it learns from scratch in few steps.
NARROW = {
    'neck.out_channels': 64,
    'neck.norm_cfg.type': 'GN',
    'neck.norm_cfg.num_groups': 8,
    'bbox_head.stacked_convs': 2,
    'bbox_head.in_channels': 64,
    'bbox_head.feat_channels': 64,
    'bbox_head.num_classes': 10,
    'bbox_head.norm_cfg.type': 'GN',
    'bbox_head.norm_cfg.num_groups': 8,
    'bbox_head.anchor_generator.octave_base_scale': 3,
}


def arguments(out: Path) -> list[object]:
    """What ``swap_backbone.py`` is called with to write the config ``out``."""
    parts = [f'configs/_base_/{part}' for part in PARTS]
    options = [f'model.{key}={value}' for key, value in NARROW.items()]
    return [RETINANET, '--width', 0.5, '--with', *parts, '--cfg-options', *options, '-o', out]
