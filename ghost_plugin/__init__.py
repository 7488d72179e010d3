"""GhostNet for timm and OpenMMLab: Ghost layers, backbones and converters in plain PyTorch.

Importing this package needs torch and nothing else. Where timm works, its door opens here
(``timm.create_model('ghostnet_plugin')``); OpenMMLab's opens by itself when a config names
``type='ghost_plugin.GhostNet'``.
"""

from ._version import __version__
from .backbones import GGhostRegNet, GhostNet, GhostNetV2, GhostNetV3
from .conversion import ConversionPlan, convert, plan
from .deploy import ExportReport, export, export_onnx, fuse, optimize, quantize
from .distillation import Distiller
from .layers.ghost import GhostConv2d, GhostModule
from .profiling import Complexity, count
from .specs import out_channels, out_strides
from .utils import optional
from .weights import load_weights

if optional.usable('timm'):
    from .integrations.timm import ghostnet_plugin as _timm_ghost  # noqa: F401

__all__ = [
    'Complexity',
    'ConversionPlan',
    'Distiller',
    'ExportReport',
    'GGhostRegNet',
    'GhostConv2d',
    'GhostModule',
    'GhostNet',
    'GhostNetV2',
    'GhostNetV3',
    '__version__',
    'convert',
    'count',
    'export',
    'export_onnx',
    'fuse',
    'load_weights',
    'optimize',
    'out_channels',
    'out_strides',
    'plan',
    'quantize',
]
