# Ours: GhostNet 0.5x trained from scratch on the handwritten digits of tools/data/make_digits.py
_base_ = [
    '../_base_/models/ghostnet_classifier.py', '../_base_/datasets/folder_classification.py',
    '../_base_/schedules/adamw.py', '../_base_/runtime_classification.py'
]  # fmt: skip
from ghost_plugin.specs import out_channels

channels = out_channels('GhostNet', out_indices=(5,), width=0.5)[0]
model = dict(backbone=dict(width=0.5), head=dict(num_classes=10, in_channels=channels, topk=(1,)))
train_cfg = dict(max_epochs=20, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=20, by_epoch=True, convert_to_iter_based=True),
]
