# Recipe: GhostNet paper (arXiv 1911.11907), section 4.2, width 1.3
_base_ = './ghostnet-100_8xb128-400e_in1k.py'
from ghost_plugin.specs import out_channels

channels = out_channels('GhostNet', out_indices=(5,), width=1.3)[0]
model = dict(backbone=dict(width=1.3), head=dict(in_channels=channels))
