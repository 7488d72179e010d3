# Recipe: G-Ghost (arXiv 2201.03297); its code names the defaults of PyTorch's ImageNet example
_base_ = './gghost-032_8xb32-90e_in1k.py'
from ghost_plugin.specs import out_channels

channels = out_channels('GGhostRegNet', out_indices=(4,), arch='080')[0]
model = dict(backbone=dict(arch='080'), head=dict(in_channels=channels))
