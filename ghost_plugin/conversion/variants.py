"""The variants of a Ghost that a budget chooses from: a ratio, and settings that go with it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cost_model import ConvSpec

RATIOS = (1.0625, 1.125, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
# Ghosts that mix several primary channels cost more to score, so fewer ratios are tried.
MIXED_RATIOS = (1.125, 1.25, 1.5, 2.0)
GROUP_SIZES: tuple[int | str, ...] = (4, 'all')
# Lower ratios hardly save time, and every variant of each conv is timed.
TIMED_RATIOS, TIMED_MIXED_RATIOS = (1.25, 1.5, 2.0, 4.0), (1.5, 2.0)


@dataclass(frozen=True)
class Variant:
    """A Ghost for a conv.

    Attributes:
        ratio: Output channels per primary channel; 1 keeps the conv.
        dw_size, group_size: As in :class:`ghost_plugin.GhostConv2d`; those of the layer if None.
    """

    ratio: float
    dw_size: int | None = None
    group_size: int | str | None = None

    @property
    def key(self) -> str:
        """Its name in the scores and latencies of a plan, such as ``'1.25 dw_size=1'``."""
        own = {'dw_size': self.dw_size, 'group_size': self.group_size}
        named = [f'{name}={value}' for name, value in own.items() if value is not None]
        return ' '.join([f'{self.ratio:g}', *named])

    @classmethod
    def from_key(cls, key: str) -> 'Variant':
        """Read what :attr:`key` gave."""
        ratio, *named = key.split()
        values: dict[str, Any] = dict(re.findall(r'(\w+)=(\w+)', ' '.join(named)))
        numbers = {name: int(text) if text.isdigit() else text for name, text in values.items()}
        return cls(float(ratio), **numbers)

    def settings(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the Ghost.

        Args:
            own: Settings of the layer.
        """
        found = {**own, 'ratio': self.ratio}
        for name in ('dw_size', 'group_size'):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        return found


def automatic_variants(shape: ConvSpec, timed: bool = False) -> list[Variant]:
    """Variants of a conv whose settings are left to a budget.

    A kernel of one pixel filters the ghosts of a 1x1 conv as well as one of 3x3, at a ninth of the
    cost (measured on EfficientNet-Lite0), and mixes several primary channels of any conv.

    Args:
        shape: Sizes of the conv.
        timed: Whether the budget is one of time.
    """
    size = 1 if set(shape.kernel_size) == {1} else 3
    single, several = (TIMED_RATIOS, TIMED_MIXED_RATIOS) if timed else (RATIOS, MIXED_RATIOS)
    mixed = [Variant(r, 1, g) for g in GROUP_SIZES for r in several]
    return [Variant(ratio, size, 1) for ratio in single] + mixed
