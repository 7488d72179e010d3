# Recipe: MMDetection's RetinaNet at 1x with G-Ghost RegNet 032
_base_ = './retinanet_ghostnet-110_fpn_1x_coco.py'
from ghost_plugin.specs import out_channels

taps = (1, 2, 3, 4)
model = dict(
    backbone=dict(_delete_=True, type='ghost_plugin.GGhostRegNet', arch='032', out_indices=taps),
    neck=dict(in_channels=out_channels('GGhostRegNet', taps, arch='032')),
)
