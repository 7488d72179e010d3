# Recipe: MMDetection's RetinaNet at 1x, as in the GhostNet paper, with GhostNetV2 1.0x
_base_ = './retinanet_ghostnet-110_fpn_1x_coco.py'
from ghost_plugin.specs import out_channels

channels = out_channels('GhostNetV2', out_indices=(1, 2, 3, 4))
model = dict(
    backbone=dict(type='ghost_plugin.GhostNetV2', width=1.0), neck=dict(in_channels=channels)
)
