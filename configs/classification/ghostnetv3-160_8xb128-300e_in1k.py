# Recipe: GhostNetV3 (arXiv 2404.11202), the authors' script without its teacher, width 1.6
_base_ = './ghostnetv3-100_8xb128-300e_in1k.py'
from ghost_plugin.specs import out_channels

channels = out_channels('GhostNetV3', out_indices=(5,), width=1.6)[0]
model = dict(backbone=dict(width=1.6), head=dict(in_channels=channels))
