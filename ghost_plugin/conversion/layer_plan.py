"""One row of a conversion plan: what it says about one conv, and what that costs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .cost_model import ConvSpec
from .inspection import ConvRecord
from .selection import FINAL, REASONS, SETTINGS, validate_settings


@dataclass
class LayerPlan:
    """What a plan says about one conv; costs are per picture of the example input.

    Attributes:
        name: Of the module.
        decision: ``'convert'`` or ``'keep'``.
        reason: Code of ``REASONS`` for kept convs.
        ratio, dw_size, cheap: Of the Ghost conv.
        shape: The conv in numbers.
        norm: Name of the norm that follows and can take a shift of the maps.
        scores: What a ratio does to the network's output when only this conv changes, by ratio.
        latencies: Milliseconds of one call, by ratio; 1 is the conv as it is.
        error: Squared error of the maps relative to their variance, once applied.
    """

    name: str
    decision: str
    reason: str
    ratio: float
    dw_size: int
    cheap: str
    shape: ConvSpec
    norm: str = ''
    scores: dict[str, float] = field(default_factory=dict)
    latencies: dict[str, float] = field(default_factory=dict)
    error: float | None = None

    @classmethod
    def of(cls, found: ConvRecord) -> 'LayerPlan':
        """The row of a conv that was selected or not."""
        decision = 'keep' if found.reason else 'convert'
        shape = ConvSpec.of(found)
        return cls(
            found.name, decision, found.reason, **found.settings, shape=shape, norm=found.norm
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the Ghost conv."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def converts(self) -> bool:
        """Whether a Ghost takes the conv's place."""
        return self.decision == 'convert'

    @property
    def chosen(self) -> bool:
        """Whether the conv stays as it is because somebody or a budget wanted that."""
        if self.converts or self.reason in FINAL:
            return self.reason == 'converted'
        return self.ratio == 1 or self.reason in ('', 'excluded', 'budget', 'slower')

    @property
    def costs(self) -> dict[str, int]:
        """Parameters and multiply-adds, before and after."""
        before = self.shape.dense()
        after = self.shape.ghost(self.settings) if self.converts else before
        return {
            'params_before': before[0],
            'params_after': after[0],
            'macs_before': before[1],
            'macs_after': after[1],
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what follows from the others is there to be read."""
        values = asdict(self)
        values['shape']['kernel_size'] = list(self.shape.kernel_size)
        return {**values, 'kind': self.shape.kind, **self.costs}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> 'LayerPlan':
        """Back from :meth:`as_dict`, edited or not.

        Raises:
            ValueError: A value that cannot be. TypeError: A name too many or missing.
        """
        derived = {'kind', 'params_before', 'params_after', 'macs_before', 'macs_after'}
        known = {f.name for f in fields(cls)}
        unknown = values.keys() - known - derived
        if unknown:
            raise TypeError(f'a row has no {sorted(unknown)}; it has {sorted(known)}')
        shape = dict(values['shape'])
        shape['kernel_size'] = tuple(shape['kernel_size'])
        own = {name: value for name, value in values.items() if name not in derived}
        row = cls(**{**own, 'shape': ConvSpec(**shape)})
        if row.decision not in ('convert', 'keep'):
            raise ValueError(
                f"decision of {row.name!r} must be 'convert' or 'keep', got {row.decision!r}"
            )
        try:
            validate_settings(row.settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f'{row.name!r}: {error}') from error
        return row


def kept(rows: Sequence[LayerPlan]) -> str:
    """How many convs stay for which reason, in words."""
    counts = Counter(row.reason or 'edited' for row in rows if not row.converts)
    return '; '.join(
        f'{number} x {code}' + (f' ({REASONS[code]})' if code in REASONS else '')
        for code, number in counts.most_common()
    )
