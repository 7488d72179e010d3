"""Networks that somebody already has, with Ghost convs that inherit their weights."""

from .plan import ConversionPlan
from .planning import convert, plan

__all__ = ['ConversionPlan', 'convert', 'plan']
