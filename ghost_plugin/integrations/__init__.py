"""Doors to other frameworks, timm and OpenMMLab, and what stands on Pillow: pictures and training.

Nothing here is imported without them.
"""
