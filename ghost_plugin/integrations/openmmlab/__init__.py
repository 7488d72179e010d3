"""Backbones, conversion, distillation and hooks for OpenMMLab; importing this registers them."""

from .backbones import GGhostRegNet, GhostNet, GhostNetV2, GhostNetV3

__all__ = ['GGhostRegNet', 'GhostNet', 'GhostNetV2', 'GhostNetV3']
