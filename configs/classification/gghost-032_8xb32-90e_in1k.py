# Recipe: G-Ghost (arXiv 2201.03297); its code names the defaults of PyTorch's ImageNet example
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py', 'mmpretrain::_base_/default_runtime.py'
]  # fmt: skip
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ghost_plugin.GGhostRegNet', arch='032', out_indices=(4,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1008, topk=(1, 5)),
)
train_cfg = dict(max_epochs=90)
