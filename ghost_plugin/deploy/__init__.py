"""The road to deployment."""

from .backends import ready
from .exporting import ExportReport, export, export_onnx
from .fusion import fuse
from .optimizing import Optimized, optimize
from .quantization import QuantReport, quantize

__all__ = [
    'ExportReport',
    'Optimized',
    'QuantReport',
    'export',
    'export_onnx',
    'fuse',
    'optimize',
    'quantize',
    'ready',
]
