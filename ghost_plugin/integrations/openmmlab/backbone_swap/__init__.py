"""Replace the backbone in a config of an OpenMMLab package, as a difference that inherits it."""

from .api import Swap, swap_backbone
from .config_io import load_config, refuse_python_style, resolve, write_config

__all__ = [
    'Swap',
    'load_config',
    'refuse_python_style',
    'resolve',
    'swap_backbone',
    'write_config',
]
