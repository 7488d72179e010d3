# Recipe: GhostNet paper (arXiv 1911.11907), section 4.2, and its author's answers (see schedule)
_base_ = [
    '../_base_/models/ghostnet_classifier.py', 'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/ghostnet_400e.py', 'mmpretrain::_base_/default_runtime.py'
]  # fmt: skip
smooth = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
model = dict(head=dict(loss=dict(_delete_=True, **smooth)))
train_dataloader = val_dataloader = test_dataloader = dict(batch_size=128)
