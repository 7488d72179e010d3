"""Layers in plain PyTorch."""

from .attention import SqueezeExcite
from .ghost import GhostConv2d, GhostModule

__all__ = ['GhostConv2d', 'GhostModule', 'SqueezeExcite']
