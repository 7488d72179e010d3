# Recipe: RepGhost (arXiv 2211.06088), the authors' script without random erasing (see schedule)
_base_ = [
    '../_base_/models/ghostnet_classifier.py', 'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/repghostnet_300e.py', 'mmpretrain::_base_/default_runtime.py'
]  # fmt: skip
smooth = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
model = dict(
    backbone=dict(type='ghost_plugin.RepGhostNet'), head=dict(loss=dict(_delete_=True, **smooth))
)
train_dataloader = val_dataloader = test_dataloader = dict(batch_size=128)
