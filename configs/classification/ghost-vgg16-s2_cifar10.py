# Recipe: GhostNet paper (arXiv 1911.11907), section 4.1: Ghost-VGG-16, ratio 2
_base_ = './vgg16_cifar10.py'
ghost = dict(type='ghost_plugin.GhostConv2d', ratio=2, min_in_channels=4, drop_bias=True)
model = dict(backbone=dict(conv_cfg=ghost))
