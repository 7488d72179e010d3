"""Progress of a conversion: events of its stages, and the line that shows them on a terminal."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

DELAY = 1.0  # seconds after which a line appears

Item = TypeVar('Item')
Report = Callable[[str, int, int], object]  # stage, done, total


@dataclass(frozen=True)
class Progress:
    """State of one stage of a conversion.

    Attributes:
        stage: Its name, such as ``'layers'``.
        done, total: Its units: batches, convs, layers or blocks.
        elapsed: Seconds that it has taken.
        left: Seconds that it will still take at this pace; None before the first unit.
    """

    stage: str
    done: int
    total: int
    elapsed: float
    left: float | None


ProgressFn = Callable[[Progress], object]


def silent(*event: object) -> None:
    """Report nothing."""


@contextmanager
def reporting(progress: ProgressFn | Literal[False] | None) -> Iterator[Report]:
    """Give a conversion the function that its stages report to.

    Args:
        progress: As in :func:`ghost_plugin.plan`.

    Raises:
        TypeError: Neither None, False nor a callable.
    """
    if callable(progress):
        yield _Stopwatch(progress)
    elif progress is None and (bars := _bars()) is not None:
        line = _Line(bars)
        try:
            yield _Stopwatch(line)
        finally:
            bars.stop()
    elif progress is None or progress is False:
        yield silent
    else:
        raise TypeError(f'progress must be None, False or a callable, got {progress!r}')


def tracked(items: Iterable[Item], total: int, report: Report, stage: str) -> Iterator[Item]:
    """Yield items, and report each one when the next is asked for.

    Args:
        items: Items.
        total: Number of items.
        report: Gets the events.
        stage: Name of the stage.
    """
    report(stage, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        report(stage, done, total)


class _Stopwatch:
    """Adds times to the events; stages may take turns.

    Args:
        show: Gets the events.
    """

    def __init__(self, show: ProgressFn) -> None:
        self.show, self.last = show, time.monotonic()
        self.elapsed: dict[str, float] = defaultdict(float)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not total:
            return
        now = time.monotonic()
        # The time since the last event is this stage's, but for what came before it began.
        self.elapsed[stage] += now - self.last if done else 0.0
        self.last, spent = now, self.elapsed[stage]
        left = spent / done * (total - done) if done else None
        self.show(Progress(stage, done, total, spent, left))


class _Line:
    """Shows events as one line of a terminal.

    Args:
        bars: Of :func:`_bars`, not started yet.
    """

    def __init__(self, bars: Any) -> None:
        self.bars, self.began = bars, time.monotonic()
        self.task = bars.add_task('', left='')

    def __call__(self, event: Progress) -> None:
        if time.monotonic() - self.began > DELAY:
            self.bars.start()  # does nothing the second time
        left = '' if event.left is None else f'{timedelta(seconds=int(event.left))} left'
        self.bars.update(
            self.task, description=event.stage, completed=event.done, total=event.total, left=left
        )


def _bars() -> Any:
    """Bars of rich; None without rich, and where standard error is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
    except ImportError:
        return None
    console = Console(stderr=True)
    columns = ('{task.description}', BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               '{task.fields[left]}')  # fmt: skip
    # What the model prints stays on standard output.
    bars = Bars(*columns, console=console, transient=True, redirect_stdout=False)
    return bars if console.is_interactive else None
