# Recipe: the GhostNet paper's table 6 (arXiv 1911.11907) carried over to ResNet-101, ratio 2
_base_ = 'mmpretrain::resnet/resnet101_8xb32_in1k.py'
ghost = dict(type='ghost_plugin.GhostConv2d', ratio=2, min_in_channels=4)  # the stem stays
model = dict(backbone=dict(conv_cfg=ghost))
