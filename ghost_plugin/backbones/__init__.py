"""Backbones in plain PyTorch."""

from .g_ghost_regnet import GGhostRegNet
from .ghostnet import GhostNet, GhostNetV2, GhostNetV3, RepGhostNet

__all__ = ['GGhostRegNet', 'GhostNet', 'GhostNetV2', 'GhostNetV3', 'RepGhostNet']
