"""The road to deployment."""

from .fuse import fuse

__all__ = ['fuse']
