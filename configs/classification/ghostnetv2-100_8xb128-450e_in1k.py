# Recipe: GhostNetV2 paper (arXiv 2211.12905), the authors' command (see schedule)
_base_ = [
    '../_base_/models/ghostnet_classifier.py', '../_base_/datasets/imagenet_randaugment.py',
    '../_base_/schedules/ghostnetv2_450e.py', 'mmpretrain::_base_/default_runtime.py'
]  # fmt: skip
smooth = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
model = dict(
    backbone=dict(type='ghost_plugin.GhostNetV2'), head=dict(loss=dict(_delete_=True, **smooth))
)
