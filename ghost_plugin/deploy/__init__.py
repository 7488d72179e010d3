"""Deployment: fuse, export, quantise and optimise trained models."""

from .backends import layer_timer, ready
from .exporting import ExportReport, export, export_onnx
from .fusion import fuse
from .image_input import ImageInput
from .optimizing import Optimized, optimize
from .quantization import QuantReport, quantize

__all__ = [
    'ExportReport',
    'ImageInput',
    'Optimized',
    'QuantReport',
    'export',
    'export_onnx',
    'fuse',
    'layer_timer',
    'optimize',
    'quantize',
    'ready',
]
