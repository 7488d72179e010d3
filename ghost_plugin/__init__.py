"""GhostNet for timm and OpenMMLab: Ghost layers, backbones and converters in plain PyTorch.

Importing this package needs torch and nothing else. It registers the timm models
(``timm.create_model('ghostnet_plugin')``) if timm can be imported. OpenMMLab registers the rest
when a config names ``type='ghost_plugin.GhostNet'``.
"""

import importlib
from typing import Any

from ._version import __version__
from .backbones import GGhostRegNet, GhostNet, GhostNetV2, GhostNetV3, RepGhostNet
from .conversion import ConversionPlan, convert
from .conversion import layer_latency as _layer_latency
from .conversion.api import plan
from .deploy import ExportReport, ImageInput, export, export_onnx, fuse, optimize, quantize
from .deploy import backends as _backends
from .distillation import Distiller
from .integrations.pretrained import from_pretrained, save_pretrained
from .layers.ghost import GhostConv2d, GhostModule
from .profiling import Complexity, count
from .specs import out_channels, out_strides
from .utils import old_paths, optional
from .weights import load_weights

old_paths.install()
# conversion does not import deploy, so its backends are registered here
_layer_latency.LATENCY_BACKENDS.update(
    {name: _backends.layer_timer(name) for name in _backends.TIMED if name != 'eager'}
)

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
    'ImageInput',
    'RepGhostNet',
    '__version__',
    'convert',
    'count',
    'export',
    'export_onnx',
    'from_pretrained',
    'fuse',
    'load_weights',
    'optimize',
    'out_channels',
    'out_strides',
    'plan',
    'quantize',
    'save_pretrained',
]


def __getattr__(name: str) -> Any:
    """Modules of version 0.1, such as ``ghost_plugin.analysis``."""
    if name in old_paths.OLD_PATHS:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
