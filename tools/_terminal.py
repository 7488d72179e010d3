"""Progress and tables on the terminal: rich where it is present, plain lines otherwise."""

import sys
import time
from types import TracebackType
from typing import Any

try:
    import rich.progress as rich_progress
except ImportError:
    rich_progress = None

_EVERY = 20.0  # seconds between two lines in a file


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


class Meter:
    """Called with (label, done, total, note), shows bar or lines on standard error.

    A terminal with rich gets bars; a terminal without it one line that is written over; anything
    else a line now and then, and one at the end of what took long.
    """

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.label, self.started, self.shown = '', 0.0, 0.0
        self.first = 0
        self.bars: Any = None
        self.task: Any = None

    def __enter__(self) -> 'Meter':
        if self.terminal and rich_progress:
            self.bars = _bars()
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars:
            self.bars.stop()
        elif self.terminal and self.label:
            sys.stderr.write('\n')

    def __call__(self, label: str, done: int, total: int, note: str = '') -> None:
        if label != self.label:
            self._begin(label, done, total)
        if self.bars:
            self.bars.update(self.task, completed=done, total=total, note=note)
        else:
            self._line(done, total, note)

    def _begin(self, label: str, done: int, total: int) -> None:
        self.label, self.first = label, done - 1
        self.started = self.shown = time.monotonic()
        if self.bars:
            self.task = self.bars.add_task(label, total=total, note='')

    def _line(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        long = now - self.started > _EVERY
        if now - self.shown < (0.5 if self.terminal else _EVERY) and not (done == total and long):
            return
        self.shown = now
        left = (now - self.started) / max(done - self.first, 1) * (total - done)
        share = f'{100 * done // total} %'
        parts = [share, *([note] if note else []), f'{clock(left)} left']
        line = f'{self.label}: {", ".join(parts)}'
        sys.stderr.write(f'\r\033[K{line}' if self.terminal else f'{line}\n')
        sys.stderr.flush()


def _bars() -> Any:
    from rich.console import Console

    p = rich_progress
    columns = (
        p.TextColumn('{task.description}'),
        p.BarColumn(),
        p.TaskProgressColumn(),
        p.TimeRemainingColumn(),
        p.TextColumn('{task.fields[note]}'),
    )
    return p.Progress(*columns, console=Console(stderr=True))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def show(text: str) -> None:
    """Print text whose Markdown tables a terminal with rich draws."""
    if not (sys.stdout.isatty() and rich_progress):
        print(text, flush=True)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    # Markdown would join lines that stand one below the other.
    lines = text.splitlines()
    spaced = [line if line.startswith('|') else f'\n{line}\n' for line in lines]
    Console().print(Markdown('\n'.join(spaced)))
