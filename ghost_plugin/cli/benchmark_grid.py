"""Any models by any backends, timed in turns.

A model is named as in :mod:`.model_loading`; ``NAME@PLAN.json`` is its conversion by a plan and
``NAME@2`` its conversion with ratio 2, both fitted without images.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..conversion import ConversionPlan, convert
from ..deploy.backends import TIMED, ModelVariants, check_backend
from ..deploy.inference import InferenceFn
from ..profiling import MIN_ROUND_MS, time_together
from ..training.loader import ProgressFn, no_progress
from ..utils import optional
from ..utils.modules import plain_forward
from .model_loading import LoadedModel, load
from .terminal import Meter, show, table

BACKENDS = ['eager', 'channels-last', 'compiled', 'onnxruntime', 'openvino']


@dataclass(frozen=True)
class Measurement:
    """One model by one backend.

    Attributes:
        model, backend: Names.
        batch, threads: Batch size; threads of every library.
        median, low, high: Milliseconds of a call, with quartiles; None if it did not run.
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


@plain_forward()
def measure_grid(
    models: Sequence[str],
    backends: Sequence[str],
    batches: Iterable[int] = (1,),
    threads: Iterable[int] = (1,),
    size: tuple[int, int] | None = None,
    rounds: int = 20,
    warmup: int = 3,
    tick: ProgressFn = no_progress,
    device: str = 'cpu',
) -> list[Measurement]:
    """Time all models by all backends, in turns for each batch size and number of threads.

    Args:
        models: Names, see above.
        backends: Keys of :data:`ghost_plugin.deploy.backends.TIMED`.
        batches, threads: Each is a run of its own.
        size: Of the images, (height, width); each model's own without it.
        rounds, warmup: Rounds of each, 20 ms or one call, and untimed calls before.
        tick: Called with the progress of building.
        device: Of models and images.

    Returns:
        One measurement per model, backend, batch size and number of threads.

    Raises:
        ValueError: No such model or backend.
    """
    for name in backends:
        check_backend(name, TIMED)
    sources = {name: load_variant(name, size) for name in models}
    before, found = torch.get_num_threads(), []
    try:
        for number in threads:
            torch.set_num_threads(number)
            for batch in batches:
                found += _measure(sources, backends, batch, number, rounds, warmup, tick, device)
    finally:
        torch.set_num_threads(before)
    return found


def load_variant(name: str, size: tuple[int, int] | None = None) -> LoadedModel:
    """Load a model, and convert it if its name says so.

    Args:
        name: A name of :mod:`.model_loading`, with ``@RATIO`` or ``@PLAN.json`` if converted.
        size: Of the images, (height, width).
    """
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
                f'a plan (.json) or a ratio follows @, got {how!r} in {name!r}'
            ) from None
        model = convert(source.model, source.example(), ratio=ratio)[0]
    return replace(source, model=model.eval())


def _measure(
    sources: dict[str, LoadedModel],
    backends: Sequence[str],
    batch: int,
    threads: int,
    rounds: int,
    warmup: int,
    tick: ProgressFn,
    device: str,
) -> list[Measurement]:
    tasks: dict[Any, Any] = {}
    found: dict[tuple[str, str], Measurement] = {}
    total = len(sources) * len(backends)
    for name, source in sources.items():
        images = torch.randn(batch, 3, *source.preprocessing.size, device=device)
        variants = ModelVariants(source.model.to(device), source.wrap(images))
        for backend in backends:
            tick('building', len(found) + 1, total, f'{name}, {backend}')
            empty = Measurement(name, backend, batch, threads)
            found[name, backend], run = _build(empty, variants)
            if run is not None:
                tasks[name, backend] = lambda run=run, x=variants.example: run(x)
    for timing in time_together(tasks, rounds, warmup, rest=True, min_ms=MIN_ROUND_MS):
        found[timing.name] = replace(
            found[timing.name], median=timing.median, low=timing.low, high=timing.high
        )
    return list(found.values())


def _build(empty: Measurement, variants: ModelVariants) -> tuple[Measurement, InferenceFn | None]:
    before = _resident()
    made = TIMED[empty.backend].try_build(variants, calls=2)
    if made.run is None:
        return replace(empty, reason=made.reason), None
    grown = None if before is None else max(0.0, _resident() - before)
    return replace(empty, memory=grown, difference=made.difference.typical), made.run


def _resident() -> float | None:
    """Resident memory of this process in megabytes."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def verdicts(found: Sequence[Measurement]) -> list[str]:
    """A sentence per model, batch size and threads: the best backend, and a conversion's gain."""
    best: dict[tuple[str, int, int], Measurement] = {}
    for one in found:
        key = (one.model, one.batch, one.threads)
        if one.median and (key not in best or one.median < best[key].median):
            best[key] = one
    return [_verdict(one, best) for one in best.values()]


def _verdict(one: Measurement, best: dict[tuple[str, int, int], Measurement]) -> str:
    text = (
        f'{one.model}, batch {one.batch}, {one.threads} threads: fastest by {one.backend}, '
        f'{one.median:.2f} ms'
    )
    plain, converted, _ = one.model.partition('@')
    other = best.get((plain, one.batch, one.threads)) if converted else None
    if other is None:
        return text
    ratio = other.median / one.median
    said = 'gains' if ratio > 1 else 'does NOT gain, the plain network wins'
    return f'{text}; the conversion {said}: {ratio:.2f} times as fast as {plain} at its best'


def draw(found: Sequence[Measurement], path: str | os.PathLike, top1: dict | None) -> None:
    """Plot the latency of each model and backend, against accuracy if that is given.

    Args:
        found: Measurements.
        path: Image file.
        top1: Accuracy in per cent by model.
    """
    optional.require('matplotlib')
    from matplotlib.figure import Figure

    shown = [one for one in found if one.median]
    figure = Figure(figsize=(8, 0.8 + (4 if top1 else 0.3 * len(shown))), layout='constrained')
    axes = figure.add_subplot()
    axes.set_xlabel('milliseconds a call, median')
    labels = [f'{m.model}, {m.backend}, batch {m.batch}, {m.threads} threads' for m in shown]
    if top1:
        for one, label in zip(shown, labels, strict=True):
            if one.model in top1:
                axes.plot(one.median, top1[one.model], 'o', label=label)
        axes.set_ylabel('top-1, %')
        axes.legend(fontsize=6)
    else:
        spread = [[m.median - m.low for m in shown], [m.high - m.median for m in shown]]
        axes.barh(labels, [m.median for m in shown], xerr=spread)
        axes.invert_yaxis()
        axes.tick_params(axis='y', labelsize=7)
    figure.savefig(path, dpi=120)


def run_grid(
    models: list[str],
    backends: list[str],
    batches: list[int],
    threads: list[int],
    size: int,
    rounds: int,
    warmup: int,
    device: str,
    plot: Path | None = None,
    top1_file: Path | None = None,
) -> list[Measurement]:
    """Measure, print the table and the verdicts, and draw.

    Args:
        models, backends, batches, threads, rounds, warmup, device: As :func:`measure_grid`.
        size: Height and width of the images.
        plot: Image file to write.
        top1_file: JSON with the accuracy in per cent by model, for the plot.
    """
    if plot:
        optional.require('matplotlib')
        from matplotlib.backend_bases import FigureCanvasBase

        known = sorted(FigureCanvasBase.get_supported_filetypes())
        if plot.suffix[1:].lower() not in known:
            raise ValueError(f'--plot must end in one of {known}, got {str(plot)!r}')
    top1 = json.loads(top1_file.read_text()) if top1_file else None
    with Meter() as meter:
        found = measure_grid(
            models, backends, batches, threads, (size, size), rounds, warmup, meter, device
        )
    head = ['Model', 'Backend', 'Batch', 'Threads', 'ms', 'images/s', 'MB', 'Difference', '']
    show(table(head, [_cells(one) for one in found]))
    load_average = ' '.join(f'{value:.1f}' for value in os.getloadavg())
    show('\n'.join(['', *verdicts(found), f'load of the machine (1, 5, 15 min): {load_average}']))
    if plot:
        draw(found, plot, top1)
    return found


def _cells(one: Measurement) -> list[str]:
    cells = [one.model, one.backend, str(one.batch), str(one.threads)]
    if one.median is None:
        return [*cells, '', '', '', '', one.reason]
    spread = f'{one.median:.2f} ({one.low:.2f} to {one.high:.2f})'
    memory = '' if one.memory is None else f'{one.memory:.0f}'
    speed = f'{1000 * one.batch / one.median:.0f}'
    return [*cells, spread, speed, memory, f'{one.difference:.1e}', '']
