# Ours: a dense network to convert, from scratch on digits; see tools/data/make_digits.py
_base_ = [
    '../_base_/models/retinanet_small.py', '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/adamw.py', '../_base_/runtime_detection.py'
]  # fmt: skip
scratch = dict(frozen_stages=-1, norm_eval=False, norm_cfg=dict(requires_grad=True), init_cfg=None)
model = dict(backbone=dict(depth=18, **scratch), neck=dict(in_channels=[64, 128, 256, 512]))
