"""The fastest form of a model on this machine, found by trying."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..layers.bn_folding import check_inference
from ..layers.common import check_positive
from ..profiling import MIN_ROUND_MS, Timing, time_together
from ..utils.modules import plain_forward
from .backends import BACKENDS, Backend, Forms
from .comparison import Difference, allowance
from .inference import Runner

# How far outputs may lie from the model's, by dtype: a figure of Difference and its largest value.
TOLERANCES = {
    'float32': ('relative', 1e-4),
    'bfloat16': ('typical', 0.05),
    'int8': ('typical', 0.3),
}


@dataclass(frozen=True)
class Trial:
    """One backend.

    Attributes:
        backend: Its name.
        dtype: Of what it computes inside.
        timing: Of one call, milliseconds; None where it was not timed.
        difference: Of its outputs from the model's.
        reason: Why it is out, '' if it is not.
    """

    backend: str
    dtype: str
    timing: Timing | None = None
    difference: Difference | None = None
    reason: str = ''


@dataclass(frozen=True)
class Report:
    """What was tried, the model itself first.

    Attributes:
        trials: One per backend.
        chosen: The fastest of those that compute the same.
        threads: Of PyTorch, which the others got, too.
        shapes: Of the example's tensors.
    """

    trials: tuple[Trial, ...]
    chosen: str
    threads: int
    shapes: tuple[tuple[int, ...], ...]

    def __getitem__(self, backend: str) -> Trial:
        return next(trial for trial in self.trials if trial.backend == backend)

    def table(self) -> str:
        """The trials in Markdown, with times as median (quartiles) and as a ratio to eager."""
        head = ['Backend', 'dtype', 'ms', 'times eager', 'difference', '']
        lines = [head, ['---'] * len(head), *(self._cells(trial) for trial in self.trials)]
        return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)

    def _cells(self, trial: Trial) -> list[str]:
        note = trial.reason or ('chosen' if trial.backend == self.chosen else '')
        cells = [trial.backend, trial.dtype, '', '', '', note]
        if trial.timing:
            t = trial.timing
            cells[2] = f'{t.median:.2f} ({t.low:.2f} to {t.high:.2f})'
            cells[3] = f'{self.trials[0].timing.median / t.median:.2f}'
        if trial.difference:
            figure = TOLERANCES[trial.dtype][0]
            cells[4] = f'{getattr(trial.difference, figure):.1e}'
        return cells

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass
class Optimized:
    """A model in its fastest form; called like the model, it gives what the model gives.

    Tensors are given by position or by name. What is no tensor in the example may be left out and
    is the example's then; what is no tensor in the outputs (sizes, counts, names) is always that of
    the example. Several threads may call it at a time.

    Attributes:
        backend: Name of the form.
        report: What was tried.

    Raises:
        TypeError: Of a call: a tensor is missing, unknown or given twice.
        ValueError: Of a call: what is no tensor in the example has another value.
    """

    backend: str
    report: Report
    _run: Runner = field(repr=False)
    _forms: Forms = field(repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._forms.flat.inputs.of_call(*args, **kwargs)
        return self._forms.flat.nested(self._run(inputs))


@plain_forward()
def optimize(
    model: nn.Module,
    example_input: Any,
    backend: str = 'auto',
    *,
    dtypes: Sequence[str] = ('float32',),
    calibration: Iterable[Any] | None = None,
    rounds: int = 20,
    warmup: int = 3,
) -> Optimized:
    """The fastest form of a model on this machine, out of those that compute the same.

    All are timed in turns in one run. One that is not installed, fails or differs is left out, and
    the report says why.

    Args:
        model: In eval mode; it is left as it is.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments. Its batch
            and sizes are what is timed; other tensors may be given to the result, but what is no
            tensor in it is kept as it is.
        backend: ``'auto'``, or a key of :data:`ghost_plugin.deploy.backends.BACKENDS`, which is
            then the only one besides the model itself.
        dtypes: What may be computed in: ``'float32'``, ``'bfloat16'``, ``'int8'``.
        calibration: Inputs like the example, for int8.
        rounds, warmup: Turns of each, 20 ms or one call, and untimed calls before.

    Returns:
        Something to call, with a ``report``.

    Raises:
        ValueError: The model is in training mode; no such backend or dtype; no turn; int8 without
            calibration; the one backend asked for does not compute the same; the model itself does
            not, called twice.
        TypeError: The example holds no tensor; the outputs are something else than tensors, tuples,
            mappings or dataclasses of these, with plain values beside them.
        ImportError: The one backend asked for needs what is not installed.
    """
    check_inference(model)
    check_positive(rounds=rounds)
    rows = _rows(backend, dtypes, calibration)
    forms = Forms(model, example_input, None if calibration is None else list(calibration))
    trials, runners = [], {}
    for row in [row for row in rows if backend == row.name or row.runs_on(forms.device)]:
        trial, run = _try(row, forms)
        if row.name == 'eager' and run is None:
            raise ValueError(
                f'nothing can be compared with {type(model).__name__}: called twice with '
                f'example_input, it {trial.reason}; its outputs are nan, or drawn or counted anew '
                'at each call'
            )
        if backend == row.name and run is None:
            raise row.refusal(trial.reason)
        trials.append(trial)
        if run is not None:
            runners[row.name] = run
    trials = _timed(trials, runners, forms, rounds, warmup)
    usable = [trial for trial in trials if trial.timing]
    chosen = min(usable, key=lambda trial: trial.timing.median).backend
    chosen = chosen if backend == 'auto' else backend
    shapes = tuple(tuple(x.shape) for x in forms.example)
    report = Report(tuple(trials), chosen, torch.get_num_threads(), shapes)
    return Optimized(chosen, report, runners[chosen], forms)


def _rows(backend: str, dtypes: Sequence[str], calibration: Any) -> list[Backend]:
    unknown = [dtype for dtype in dtypes if dtype not in TOLERANCES]
    if unknown or isinstance(dtypes, str):
        raise ValueError(f'dtypes must be some of {tuple(TOLERANCES)}, got {dtypes!r}')
    if 'int8' in dtypes and calibration is None:
        raise ValueError("dtypes with 'int8' need calibration=, inputs like the example")
    if backend == 'auto':
        return [row for row in BACKENDS.values() if row.dtype in dtypes or row.name == 'eager']
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {list(BACKENDS)}, got {backend!r}")
    return [BACKENDS[name] for name in dict.fromkeys(('eager', backend))]


def _try(row: Backend, forms: Forms) -> tuple[Trial, Runner | None]:
    """Build one backend and compare it."""
    made = row.attempt(forms)
    if made.run is None:
        return Trial(row.name, row.dtype, reason=made.reason), None
    found = made.difference
    figure, largest = TOLERANCES[row.dtype]
    if row.dtype == 'float32' and not found.relative <= largest:
        largest = allowance(forms.flat, forms.example, largest)
    if not getattr(found, figure) <= largest:
        reason = f'differs by {getattr(found, figure):.1e} ({figure}), allowed is {largest:g}'
        return Trial(row.name, row.dtype, difference=found, reason=reason), None
    return Trial(row.name, row.dtype, difference=found), made.run


def _timed(
    trials: list[Trial], runners: dict[str, Runner], forms: Forms, rounds: int, warmup: int
) -> list[Trial]:
    tasks = {name: lambda run=run: run(forms.example) for name, run in runners.items()}
    timings = {
        t.name: t for t in time_together(tasks, rounds, warmup, rest=True, min_ms=MIN_ROUND_MS)
    }
    return [replace(trial, timing=timings.get(trial.backend)) for trial in trials]
