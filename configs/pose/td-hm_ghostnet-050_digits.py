# Ours: GhostNet 0.5x from scratch on key points of digits; first: tools/data/make_digits.py
_base_ = [
    '../_base_/models/pose_small.py', '../_base_/datasets/digits_keypoints.py',
    '../_base_/schedules/adamw.py', '../_base_/runtime_pose.py'
]  # fmt: skip
from ghost_plugin.specs import out_channels

size = dict(width=0.5, out_indices=(3,))
model = dict(
    backbone=dict(type='ghost_plugin.GhostNet', output_stride=8, **size),
    head=dict(in_channels=out_channels('GhostNet', **size)[0], decoder={{_base_.codec}}),
)
