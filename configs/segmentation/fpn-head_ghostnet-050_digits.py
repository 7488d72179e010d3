# Ours: GhostNet 0.5x from scratch on masks of digits; first: tools/data/make_digits.py
_base_ = [
    '../_base_/models/segmentor_small.py', '../_base_/datasets/digits_segmentation.py',
    '../_base_/schedules/adamw_10e.py', '../_base_/runtime_segmentation.py'
]  # fmt: skip
from ghost_plugin.specs import out_channels

size = dict(width=0.5, out_indices=(0, 1, 2, 3))
channels = out_channels('GhostNet', **size)
model = dict(
    backbone=dict(type='ghost_plugin.GhostNet', **size),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[-1], channels=channels[-1]),
)
