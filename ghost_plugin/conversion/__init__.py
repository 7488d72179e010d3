"""Conversion of trained networks: Ghost convs that inherit the weights of dense convs."""

from .api import convert
from .apply import ConversionResult, apply_plan
from .plan import ConversionPlan, LayerPlan

__all__ = ['ConversionPlan', 'ConversionResult', 'LayerPlan', 'apply_plan', 'convert']
