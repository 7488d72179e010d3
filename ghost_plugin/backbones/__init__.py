"""Backbones in plain PyTorch."""

from .ghostnet import GhostNet

__all__ = ['GhostNet']
