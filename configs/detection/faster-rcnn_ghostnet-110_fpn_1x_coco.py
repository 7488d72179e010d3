# Recipe: GhostNet paper (arXiv 1911.11907), table 8: 1.1x, ImageNet weights, MMDetection's 1x
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py', 'mmdet::_base_/default_runtime.py'
]  # fmt: skip
from ghost_plugin.specs import out_channels

taps = (1, 2, 3, 4)
model = dict(
    backbone=dict(_delete_=True, type='ghost_plugin.GhostNet', width=1.1, out_indices=taps),
    neck=dict(in_channels=out_channels('GhostNet', width=1.1, out_indices=taps)),
)
