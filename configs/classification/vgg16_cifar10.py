# Recipe: GhostNet paper (arXiv 1911.11907), section 4.1: VGG-16 with a 512-512-10 head
_base_ = [
    'mmpretrain::_base_/datasets/cifar10_bs16.py', '../_base_/schedules/cifar_400e.py',
    'mmpretrain::_base_/default_runtime.py'
]  # fmt: skip
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VGG', depth=16, norm_cfg=dict(type='BN'), out_indices=(4,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead', num_classes=10, in_channels=512, mid_channels=[512], topk=(1,)
    ),
)
train_dataloader = dict(batch_size=128)
