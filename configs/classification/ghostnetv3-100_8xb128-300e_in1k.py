# Recipe: GhostNetV3 (arXiv 2404.11202), the authors' script without its teacher (see schedule)
_base_ = [
    '../_base_/models/ghostnet_classifier.py', 'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/ghostnetv3_300e.py', 'mmpretrain::_base_/default_runtime.py'
]  # fmt: skip
smooth = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
model = dict(
    backbone=dict(type='ghost_plugin.GhostNetV3'),
    head=dict(dropout_rate=0.0, loss=dict(_delete_=True, **smooth)),
)
train_dataloader = val_dataloader = test_dataloader = dict(batch_size=128)
