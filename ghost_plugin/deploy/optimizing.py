"""Find the fastest backend for a model on this machine by measuring."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..layers.bn_folding import check_inference
from ..layers.common import check_positive
from ..profiling import MIN_ROUND_MS, Timing, time_together
from ..utils.modules import plain_forward
from .backends import BACKENDS, ROWS, Backend, ModelVariants, check_backend
from .comparison import Difference, float32_tolerance
from .inference import InferenceFn

# By dtype: a figure of Difference and its largest allowed value.
TOLERANCES = {
    'float32': ('relative', 1e-4),
    'bfloat16': ('typical', 0.05),
    'int8': ('typical', 0.3),
}


@dataclass(frozen=True)
class Trial:
    """Result of one backend.

    Attributes:
        backend: Its name.
        dtype: Compute dtype.
        split_concat: Concatenations of Ghost layers are eliminated.
        timing: Time of one call; None where it was not timed.
        difference: Difference of its outputs from the model's.
        reason: Why it is excluded; '' if it is not.
    """

    backend: str
    dtype: str
    split_concat: bool = False
    timing: Timing | None = None
    difference: Difference | None = None
    reason: str = ''

    @property
    def label(self) -> str:
        """Name for people and for :class:`Report`."""
        return f'{self.backend}, split_concat' if self.split_concat else self.backend


@dataclass(frozen=True)
class Report:
    """All trials, eager PyTorch first.

    Attributes:
        trials: One per backend, and one more where concatenations could be split.
        chosen: Label of the fastest trial whose outputs are close enough.
        threads: Threads of PyTorch and of the other runtimes.
        shapes: Shapes of the example's tensors.
    """

    trials: tuple[Trial, ...]
    chosen: str
    threads: int
    shapes: tuple[tuple[int, ...], ...]

    def __getitem__(self, label: str) -> Trial:
        return next(trial for trial in self.trials if trial.label == label)

    def table(self) -> str:
        """Format as Markdown: median time (quartiles), speed relative to eager, difference."""
        head = ['Backend', 'dtype', 'ms', 'times eager', 'difference', '']
        lines = [head, ['---'] * len(head), *(self._cells(trial) for trial in self.trials)]
        return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)

    def _cells(self, trial: Trial) -> list[str]:
        note = trial.reason or ('chosen' if trial.label == self.chosen else '')
        cells = [trial.label, trial.dtype, '', '', '', note]
        if trial.timing:
            t = trial.timing
            cells[2] = f'{t.median:.2f} ({t.low:.2f} to {t.high:.2f})'
            cells[3] = f'{self.trials[0].timing.median / t.median:.2f}'
        if trial.difference:
            figure = TOLERANCES[trial.dtype][0]
            cells[4] = f'{getattr(trial.difference, figure):.1e}'
        return cells

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Optimized:
    """A model in its fastest backend; called like the model, it returns what the model returns.

    Tensors are given by position or by name. Arguments that are not tensors may be omitted and
    have the example's values; so have outputs that are not tensors (sizes, counts, names).
    Several threads may call it at the same time.

    Attributes:
        backend: Name of the backend.
        report: All trials.

    Raises:
        TypeError: In a call, a tensor is missing, unknown or given twice.
        ValueError: In a call, an argument that is not a tensor differs from the example's.
    """

    backend: str
    report: Report
    _run: InferenceFn = field(repr=False)
    _variants: ModelVariants = field(repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._variants.plain.inputs.bind(*args, **kwargs)
        return self._variants.plain.unflatten(self._run(inputs))


@plain_forward()
def optimize(
    model: nn.Module,
    example_input: Any,
    backend: str = 'auto',
    *,
    dtypes: Sequence[str] = ('float32',),
    split_concat: bool | str = 'auto',
    calibration: Iterable[Any] | None = None,
    rounds: int = 20,
    warmup: int = 3,
) -> Optimized:
    """Find the fastest backend of this machine whose outputs equal the model's.

    All backends are timed in turns in one run. Backends that are not installed, fail or differ are
    excluded, and the report gives the reason.

    Args:
        model: In eval mode; it stays unchanged.
        example_input: A tensor, a tuple of arguments or a mapping of keyword arguments. Its shapes
            are timed; the result accepts other shapes, too.
        backend: ``'auto'``, or a key of :data:`ghost_plugin.deploy.backends.BACKENDS`, which is
            then tried besides eager PyTorch only.
        dtypes: Allowed compute dtypes: ``'float32'``, ``'bfloat16'``, ``'int8'``.
        split_concat: Eliminate the concatenations of Ghost layers in ONNX Runtime and OpenVINO:
            ``'auto'`` times both forms, True only this one, False only the other.
        calibration: Inputs like the example, for int8.
        rounds: Timed rounds of each backend, 20 ms or one call.
        warmup: Untimed calls of each backend.

    Returns:
        A callable with a ``report``.

    Raises:
        ValueError: The model is in training mode; a wrong option; int8 without calibration; the
            requested backend fails or differs; the model differs from itself, called twice.
        TypeError: The example holds no tensor; outputs are not tensors, tuples, mappings or
            dataclasses of these, with plain values beside them.
        ImportError: The requested backend needs a package that is not installed.
    """
    check_inference(model)
    check_positive(rounds=rounds)
    rows = _rows(backend, dtypes, split_concat, calibration)
    variants = ModelVariants(
        model, example_input, None if calibration is None else list(calibration)
    )
    trials, runners = [], {}
    for row in [row for row in rows if backend == row.name or row.runs_on(variants.device)]:
        trial, run = _try(row, variants)
        if row.name == 'eager' and run is None:
            raise ValueError(
                f'nothing can be compared with {type(model).__name__}: called twice with '
                f'example_input, it {trial.reason}; its outputs are nan, or drawn or counted anew '
                'at each call'
            )
        trials.append(trial)
        if run is not None:
            runners[trial.label] = run
    requested = [trial for trial in trials if backend in ('auto', trial.backend)]
    if not any(trial.label in runners for trial in requested):
        raise BACKENDS[backend].refusal(requested[0].reason)
    tasks = {name: lambda run=run: run(variants.example) for name, run in runners.items()}
    timed = time_together(tasks, rounds, warmup, rest=True, min_ms=MIN_ROUND_MS)
    timings = {timing.name: timing for timing in timed}
    trials = [replace(trial, timing=timings.get(trial.label)) for trial in trials]
    usable = [trial for trial in trials if trial.timing and backend in ('auto', trial.backend)]
    chosen = min(usable, key=lambda trial: trial.timing.median)
    shapes = tuple(tuple(x.shape) for x in variants.example)
    report = Report(tuple(trials), chosen.label, torch.get_num_threads(), shapes)
    return Optimized(chosen.backend, report, runners[chosen.label], variants)


def _rows(
    backend: str, dtypes: Sequence[str], split_concat: bool | str, calibration: Any
) -> list[Backend]:
    unknown = [dtype for dtype in dtypes if dtype not in TOLERANCES]
    if unknown or isinstance(dtypes, str):
        raise ValueError(f'dtypes must be some of {tuple(TOLERANCES)}, got {dtypes!r}')
    if 'int8' in dtypes and calibration is None:
        raise ValueError("dtypes with 'int8' need calibration=, inputs like the example")
    if split_concat not in ('auto', True, False):
        raise ValueError(f"split_concat must be 'auto', True or False, got {split_concat!r}")
    check_backend(backend, ['auto', *BACKENDS])
    split = {row.name for row in ROWS if row.split_concat}
    if split_concat is True and backend not in ('auto', *split):
        raise ValueError(f'split_concat=True works for {sorted(split)}, got backend {backend!r}')
    return [
        row
        for row in ROWS
        if row.name == 'eager'
        or (
            (row.dtype in dtypes if backend == 'auto' else row.name == backend)
            and (split_concat == 'auto' or row.split_concat == (split_concat and row.name in split))
        )
    ]


def _try(row: Backend, variants: ModelVariants) -> tuple[Trial, InferenceFn | None]:
    """Build one backend and compare it."""
    built = row.try_build(variants)
    trial = Trial(row.name, row.dtype, row.split_concat, None, built.difference, built.reason)
    if built.run is None:
        return trial, None
    figure, limit = TOLERANCES[row.dtype]
    if row.dtype == 'float32' and not built.difference.relative <= limit:
        limit = float32_tolerance(variants.plain, variants.example, limit)
    found = getattr(built.difference, figure)
    if not found <= limit:
        reason = f'differs by {found:.1e} ({figure}), allowed is {limit:g}'
        return replace(trial, reason=reason), None
    return trial, built.run
