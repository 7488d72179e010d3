"""Registration of the backbones with timm."""
