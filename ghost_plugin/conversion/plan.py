"""A conversion plan: one row per conv, to be read, edited, saved and applied."""

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._version import __version__
from .fitting import Fit, from_statistics, from_weights, on_inputs, settle
from .reconstruct import STEPS, Reconstruction
from .selection import REASONS, costs, select
from .surgery import build_ghosts, repair, swap
from .tracing import Found

RECONSTRUCT = ('layer', 'block')
# Options of gp.convert that belong to ConversionPlan.apply.
APPLY = ('calibration', 'reconstruct', 'steps', 'inherit', 'inplace', 'optimizers')


@dataclass
class Row:
    """What a plan says about one conv; costs are per picture of the example input."""

    name: str
    kind: str
    decision: str  # 'convert' or 'keep'
    reason: str  # code of REASONS for kept convs
    ratio: float
    dw_size: int
    cheap: str
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    norm: str = ''  # that follows, and can take a shift of the maps
    error: float | None = None  # relative squared error of the maps, once applied

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the Ghost conv."""
        return {'ratio': self.ratio, 'dw_size': self.dw_size, 'cheap': self.cheap}


@dataclass
class ConversionPlan:
    """Which convs of a model become Ghost convs, and how.

    Attributes:
        model: Class of the model that it was made for.
        fingerprint: Of that model's parameter names and shapes.
        rows: One per conv, in the order of the forward pass. ``decision``, ``ratio``, ``dw_size``
            and ``cheap`` may be edited.
        seed: Of the fresh weights, where nothing is inherited.
        version: Of the package that made it.
    """

    model: str
    fingerprint: str
    rows: list[Row] = field(default_factory=list)
    seed: int = 0
    version: str = __version__

    @property
    def totals(self) -> dict[str, int]:
        """Parameters and multiply-adds of all convs, before and after."""
        names = ('params_before', 'params_after', 'macs_before', 'macs_after')
        return {name: sum(getattr(row, name) for row in self.rows) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), 'totals': self.totals}

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON; a file that is there stays whole until the new one is."""
        path = Path(path)
        text = json.dumps(self.as_dict(), indent=1, sort_keys=False) + '\n'
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f'{path.name}.')
        with os.fdopen(handle, 'w') as file:
            file.write(text)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'ConversionPlan':
        """Read what :meth:`save` wrote, edited or not.

        Raises:
            ValueError: Not a plan, or an edited row that cannot be.
        """
        try:
            content = json.loads(Path(path).read_text())
            content.pop('totals', None)
            rows = [Row(**row) for row in content.pop('rows')]
            plan = cls(rows=rows, **content)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            names = [f.name for f in fields(Row)]
            raise ValueError(
                f'{os.fspath(path)!r} is not a conversion plan: {error}; a row has {names}'
            ) from error
        for row in plan.rows:
            if row.decision not in ('convert', 'keep'):
                raise ValueError(
                    f"decision of {row.name!r} must be 'convert' or 'keep', got {row.decision!r}"
                )
        return plan

    def report(self) -> str:
        """The plan as a table in Markdown, with totals and what the reasons mean."""
        lines = [
            '| Conv | Kind | Decision | Ratio | Params (k) | MACs (M) | Error |',
            '| --- | --- | --- | --- | --- | --- | --- |',
            *map(_line, self.rows),
        ]
        params, macs = _change(self.totals, 'params', 1e3), _change(self.totals, 'macs', 1e6)
        lines.append(f'| all convs | | | | {params} | {macs} | |')
        codes = sorted({row.reason for row in self.rows if row.reason})
        return '\n'.join([*lines, *(f'{code}: {REASONS.get(code, code)}' for code in codes)])

    def apply(
        self,
        model: nn.Module,
        *,
        calibration: Iterable[Any] | None = None,
        reconstruct: str | None = None,
        steps: int = STEPS,
        inherit: bool = True,
        inplace: bool = False,
        optimizers: Iterable[torch.optim.Optimizer] = (),
    ) -> nn.Module:
        """Put Ghost convs into a model, with the weights of the convs that they replace.

        Args:
            model: The model that the plan was made for, or one of the same shape.
            calibration: Batches to call the model with; without them the kernels speak for the
                maps, as on white noise.
            reconstruct: ``'layer'`` or ``'block'`` adds gradient steps on the calibration batches,
                towards what the original gives there; labels are not needed.
            steps: Of each layer or block.
            inherit: Without it the Ghost convs are initialised anew from the plan's seed.
            inplace: Change ``model`` itself.
            optimizers: Built before, with parameters of ``model``; with ``inplace`` they get the
                new ones in the place of the old.

        Returns:
            The converted model. Rows hold the error of each conv's maps afterwards.

        Raises:
            ValueError: The model is another one; it is untouched then.
        """
        self._check(model)
        model = model if inplace else copy.deepcopy(model)
        chosen = [row for row in self.rows if row.decision == 'convert']
        ghosts = build_ghosts(model, {row.name: row.settings for row in chosen}, self.seed)
        fit = Fit(model, ghosts, {row.name: row.norm for row in chosen})
        learnt = _fitted(fit, calibration, reconstruct, steps, self.seed) if inherit else None
        dense = [(fit.conv(name), ghost) for name, ghost in ghosts.items()]
        model = swap(model, ghosts)
        settle(model, fit)
        if learnt is not None:
            learnt.settle(model)
        if optimizers:
            repair(optimizers, dense)
        for row in self.rows:
            row.error = fit.errors.get(row.name)
        return model

    def _check(self, model: nn.Module) -> None:
        found = fingerprint(model)
        if found != self.fingerprint:
            names = dict(model.named_modules())
            lost = [row.name for row in self.rows if row.name not in names][:3]
            raise ValueError(
                f'this plan was made for another {self.model} (fingerprint {self.fingerprint}), '
                f'got {type(model).__name__} ({found})'
                + (f' without {lost}' if lost else '')
                + '; make a plan for it with gp.plan'
            )


def plan(model: nn.Module, example_input: Any, *, seed: int = 0, **options: Any) -> ConversionPlan:
    """Plan a conversion; the model is not touched and no data is needed.

    Args:
        model, example_input: A network, and what to call it with once.
        seed: Of fresh weights, where nothing is inherited.
        options: ``ratio=2``, ``dw_size=3``, ``cheap='depthwise'`` of all Ghost convs; ``include``,
            ``exclude``, ``keep_first=True``, ``keep_last=True`` as
            :func:`ghost_plugin.conversion.selection.select`.

    Raises:
        ValueError: A pattern matches no conv. TypeError: An option that does not exist.
    """
    rows = [_row(found) for found in select(model, example_input, **options)]
    return ConversionPlan(type(model).__name__, fingerprint(model), rows, seed)


def convert(
    model: nn.Module,
    example_input: Any,
    **options: Any,
) -> tuple[nn.Module, ConversionPlan]:
    """:func:`plan` and :meth:`ConversionPlan.apply` in one; the converted model and its plan."""
    taken = {name: options.pop(name) for name in APPLY if name in options}
    made = plan(model, example_input, **options)
    return made.apply(model, **taken), made


def _fitted(
    fit: Fit, calibration: Iterable[Any] | None, reconstruct: str | None, steps: int, seed: int
) -> Reconstruction | None:
    """Give the Ghosts of ``fit`` their weights; what was learnt beyond them, if anything."""
    if reconstruct not in (None, *RECONSTRUCT):
        raise ValueError(f'reconstruct must be None or one of {RECONSTRUCT}, got {reconstruct!r}')
    if calibration is None:
        if reconstruct:
            raise ValueError(f'reconstruct={reconstruct!r} needs calibration batches')
        from_weights(fit)
        return None
    batches = list(calibration)
    if not batches:
        raise ValueError('calibration holds no batch; leave it out to go without data')
    from_statistics(fit, batches)
    if reconstruct is None:
        on_inputs(fit, batches)
        return None
    learnt = Reconstruction(fit, batches, steps, seed)
    {'layer': learnt.layers, 'block': learnt.blocks}[reconstruct]()
    return learnt


def fingerprint(model: nn.Module) -> str:
    """Twelve digits that tell the names and shapes of a model's parameters."""
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]


def _row(found: Found) -> Row:
    conv, (before, after) = found.conv, costs(found)
    after = before if found.reason else after
    rows, columns = conv.kernel_size
    groups = f' groups {conv.groups}' if conv.groups > 1 else ''
    return Row(
        name=found.name,
        kind=f'{conv.in_channels} to {conv.out_channels}, {rows}x{columns}{groups}',
        decision='keep' if found.reason else 'convert',
        reason=found.reason,
        params_before=before[0],
        params_after=after[0],
        macs_before=before[1],
        macs_after=after[1],
        norm=found.norm,
        **found.settings,
    )


def _change(numbers: dict[str, Any], what: str, unit: float) -> str:
    before, after = (numbers[f'{what}_{when}'] / unit for when in ('before', 'after'))
    return f'{before:.2f}' if before == after else f'{before:.2f} to {after:.2f}'


def _line(row: Row) -> str:
    numbers = vars(row)
    converted = row.decision == 'convert'
    decision = 'convert' if converted else f'keep ({row.reason or "edited"})'
    error = '' if row.error is None else f'{row.error:.3f}'
    return (
        f'| {row.name} | {row.kind} | {decision} | {row.ratio if converted else ""} | '
        f'{_change(numbers, "params", 1e3)} | {_change(numbers, "macs", 1e6)} | {error} |'
    )
