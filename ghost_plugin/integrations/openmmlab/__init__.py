"""Backbones, conversion, distillation and hooks for OpenMMLab; importing this registers them."""

from . import checkpoint_hook, conversion, distillation, feature_adapter, fsdp, progress_hook
from .backbones import GGhostRegNet, GhostNet, GhostNetV2, GhostNetV3, RepGhostNet

__all__ = [
    'GGhostRegNet',
    'GhostNet',
    'GhostNetV2',
    'GhostNetV3',
    'RepGhostNet',
    'checkpoint_hook',
    'conversion',
    'distillation',
    'feature_adapter',
    'fsdp',
    'progress_hook',
]
