"""Another backbone for a config of an OpenMMLab package, as a difference that inherits it."""

from .files import load_config, refuse_python_style, resolve, write_config
from .swapping import Swap, swap_backbone

__all__ = [
    'Swap',
    'load_config',
    'refuse_python_style',
    'resolve',
    'swap_backbone',
    'write_config',
]
