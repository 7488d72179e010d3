# Ours: GhostNet 1.0x from scratch on blood cells; first: tools/data/voc_to_coco.py ZIP data/bccd
_base_ = [
    '../_base_/models/retinanet_small.py', '../_base_/datasets/voc_detection.py',
    '../_base_/schedules/adamw.py', '../_base_/runtime_detection.py'
]  # fmt: skip
from ghost_plugin.specs import out_channels

taps = (1, 2, 3, 4)
model = dict(
    backbone=dict(
        _delete_=True, type='ghost_plugin.GhostNet', out_indices=taps, zero_init_residual=True
    ),
    neck=dict(in_channels=out_channels('GhostNet', out_indices=taps)),
    bbox_head=dict(num_classes=3),
)
