# Recipe: GhostNet paper (arXiv 1911.11907), table 6: ResNet-50, ratio 4, MMPretrain's schedule
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
ghost = dict(type='ghost_plugin.GhostConv2d', ratio=4, min_in_channels=4)  # the stem stays
model = dict(backbone=dict(conv_cfg=ghost))
