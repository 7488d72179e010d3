"""Doors to other frameworks: timm and OpenMMLab. Nothing here is imported without them."""
