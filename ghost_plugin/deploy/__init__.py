"""The road to deployment."""

from .backends import ready
from .export import ExportReport, export, export_onnx
from .fuse import fuse
from .quantize import QuantReport, quantize
from .runtime import Optimized, optimize

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
