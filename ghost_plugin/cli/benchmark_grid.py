"""Any models by any backends, timed in turns: what the benchmark's grid shows.

A model is named as in :mod:`ghost_plugin.cli.model_loading`; ``NAME@PLAN.json`` is its
conversion by a plan and ``NAME@2`` the one with ratio 2 everywhere, both fitted without pictures.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..conversion import ConversionPlan, convert
from ..deploy.backends import TIMED, Forms
from ..deploy.inference import Runner
from ..profiling import MIN_ROUND_MS, time_together
from ..training.loader import ProgressFn, no_progress
from ..utils import optional
from ..utils.modules import plain_forward
from .model_loading import LoadedModel, load


@dataclass(frozen=True)
class Figure:
    """One model by one backend.

    Attributes:
        model, backend: Names.
        batch, threads: Pictures per call; threads of every library.
        median, low, high: Milliseconds of a call, with quartiles; None where it did not run.
        memory: Megabytes that the process grew by for building and first calls; None off Linux.
        difference: Of the outputs from the plain model's, as a share of their size.
        reason: Why it did not run.
    """

    model: str
    backend: str
    batch: int
    threads: int
    median: float | None = None
    low: float | None = None
    high: float | None = None
    memory: float | None = None
    difference: float | None = None
    reason: str = ''

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@plain_forward()
def grid(
    models: Sequence[str],
    backends: Sequence[str],
    batches: Iterable[int] = (1,),
    threads: Iterable[int] = (1,),
    size: tuple[int, int] | None = None,
    rounds: int = 20,
    warmup: int = 3,
    tick: ProgressFn = no_progress,
    device: str = 'cpu',
) -> list[Figure]:
    """Time all models by all backends, in turns for each batch and number of threads.

    Args:
        models: Names, see above.
        backends: Keys of :data:`ghost_plugin.deploy.backends.TIMED`.
        batches, threads: Each is a run of its own.
        size: Of the pictures, (height, width); each model's own without it.
        rounds, warmup: Turns of each, 20 ms or one call, and untimed calls before.
        tick: Shown what is built.
        device: Where models and pictures lie.

    Returns:
        One figure per model, backend, batch and number of threads.

    Raises:
        ValueError: No such model or backend.
    """
    unknown = [name for name in backends if name not in TIMED]
    if unknown:
        raise ValueError(f'backends must be some of {list(TIMED)}, got {unknown[0]!r}')
    sources = {name: named(name, size) for name in models}
    before, found = torch.get_num_threads(), []
    try:
        for number in threads:
            torch.set_num_threads(number)
            for batch in batches:
                found += _run(sources, backends, batch, number, rounds, warmup, tick, device)
    finally:
        torch.set_num_threads(before)
    return found


def named(name: str, size: tuple[int, int] | None = None) -> LoadedModel:
    """The model of a name, converted where it says so."""
    plain, _, how = name.partition('@')
    torch.manual_seed(0)
    source = load(plain).adjusted(size)
    if not how:
        return source
    if how.endswith('.json'):
        model = ConversionPlan.load(Path(how)).apply(source.model)
    else:
        try:
            ratio = float(how)
        except ValueError:
            raise ValueError(
                f'behind @ stands a plan (.json) or a ratio, got {how!r} in {name!r}'
            ) from None
        model = convert(source.model, source.example(), ratio=ratio)[0]
    return LoadedModel(model.eval(), source.look, source.wrap)


def _run(
    sources: dict[str, LoadedModel],
    backends: Sequence[str],
    batch: int,
    threads: int,
    rounds: int,
    warmup: int,
    tick: ProgressFn,
    device: str,
) -> list[Figure]:
    runners: dict[tuple[str, str], tuple[Runner, Any]] = {}
    figures: dict[tuple[str, str], Figure] = {}
    total = len(sources) * len(backends)
    for name, source in sources.items():
        images = torch.randn(batch, 3, *source.look.size, device=device)
        forms = Forms(source.model.to(device), source.wrap(images))
        for backend in backends:
            tick('building', len(figures) + 1, total, f'{name}, {backend}')
            figure, run = _built(name, backend, batch, threads, forms)
            figures[name, backend] = figure
            if run is not None:
                runners[name, backend] = run, forms.example
    tasks = {key: lambda run=run, x=x: run(x) for key, (run, x) in runners.items()}
    for timing in time_together(tasks, rounds, warmup, rest=True, min_ms=MIN_ROUND_MS):
        figures[timing.name] = replace(
            figures[timing.name], median=timing.median, low=timing.low, high=timing.high
        )
    return list(figures.values())


def _built(
    name: str, backend: str, batch: int, threads: int, forms: Forms
) -> tuple[Figure, Runner | None]:
    before = _resident()
    made = TIMED[backend].attempt(forms, calls=2)
    if made.run is None:
        return Figure(name, backend, batch, threads, reason=made.reason), None
    grown = None if before is None else max(0.0, _resident() - before)
    found = made.difference.typical
    return Figure(name, backend, batch, threads, memory=grown, difference=found), made.run


def _resident() -> float | None:
    """Megabytes of this process in memory."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def verdicts(figures: Sequence[Figure]) -> list[str]:
    """A sentence per model, batch and threads: its best backend; whether a conversion gained."""
    best: dict[tuple[str, int, int], Figure] = {}
    for figure in figures:
        key = (figure.model, figure.batch, figure.threads)
        if figure.median and (key not in best or figure.median < best[key].median):
            best[key] = figure
    return [_verdict(figure, best) for figure in best.values()]


def _verdict(figure: Figure, best: dict[tuple[str, int, int], Figure]) -> str:
    text = (
        f'{figure.model}, batch {figure.batch}, {figure.threads} threads: fastest by '
        f'{figure.backend}, {figure.median:.2f} ms'
    )
    plain, converted, _ = figure.model.partition('@')
    other = best.get((plain, figure.batch, figure.threads)) if converted else None
    if other is None:
        return text
    ratio = other.median / figure.median
    said = 'gains' if ratio > 1 else 'does NOT gain, the plain network wins'
    return f'{text}; the conversion {said}: {ratio:.2f} times as fast as {plain} at its best'


def draw(figures: Sequence[Figure], path: str | os.PathLike, top1: dict[str, float] | None) -> None:
    """Latency of each model and backend as a picture; against accuracy where that is given.

    Args:
        figures: Of one batch and number of threads, or more.
        path: PNG file.
        top1: Accuracy in per cent by model.
    """
    optional.require('matplotlib')
    from matplotlib.figure import Figure as Canvas

    shown = [figure for figure in figures if figure.median]
    canvas = Canvas(figsize=(8, 0.8 + (4 if top1 else 0.3 * len(shown))), layout='constrained')
    axes = canvas.add_subplot()
    axes.set_xlabel('milliseconds a call, median')
    labels = [f'{f.model}, {f.backend}, batch {f.batch}, {f.threads} threads' for f in shown]
    if top1:
        for figure, label in zip(shown, labels, strict=True):
            if figure.model in top1:
                axes.plot(figure.median, top1[figure.model], 'o', label=label)
        axes.set_ylabel('top-1, %')
        axes.legend(fontsize=6)
    else:
        times = [figure.median for figure in shown]
        spread = [[f.median - f.low for f in shown], [f.high - f.median for f in shown]]
        axes.barh(labels, times, xerr=spread)
        axes.invert_yaxis()
        axes.tick_params(axis='y', labelsize=7)
    canvas.savefig(path, dpi=120)
