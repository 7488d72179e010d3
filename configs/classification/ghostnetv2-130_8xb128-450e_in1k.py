# Recipe: GhostNetV2 paper (arXiv 2211.12905), the authors' command with --width 1.3
_base_ = './ghostnetv2-100_8xb128-450e_in1k.py'
from ghost_plugin.specs import out_channels

channels = out_channels('GhostNetV2', out_indices=(5,), width=1.3)[0]
model = dict(backbone=dict(width=1.3), head=dict(in_channels=channels))
