# Recipe: GhostNet paper (arXiv 1911.11907), section 4.2, and its author's answers (see schedule)
_base_ = [
    '../_base_/models/ghostnet_classifier.py', 'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/ghostnet_400e.py', 'mmpretrain::_base_/default_runtime.py'
]  # fmt: skip
from ghost_plugin.specs import out_channels

channels = out_channels('GhostNet', out_indices=(5,), width=1.3)[0]
smooth = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
model = dict(
    backbone=dict(width=1.3), head=dict(in_channels=channels, loss=dict(_delete_=True, **smooth))
)
train_dataloader = dict(batch_size=128)
val_dataloader = test_dataloader = dict(batch_size=128)
