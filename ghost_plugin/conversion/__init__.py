"""Networks that somebody already has, with Ghost convs that inherit their weights."""

from .api import convert, plan
from .plan import ConversionPlan

__all__ = ['ConversionPlan', 'convert', 'plan']
