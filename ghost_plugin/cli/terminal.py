"""Progress and tables on the terminal: rich where it is present, plain lines otherwise."""

import sys
import time
from itertools import groupby
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
        self.tasks: dict[str, Any] = {}  # rich's bars by label

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
            self.bars.update(self.tasks[label], completed=done, total=total, note=note)
        else:
            self._line(done, total, note)

    def _begin(self, label: str, done: int, total: int) -> None:
        self.label, self.first = label, done - 1
        self.started = self.shown = time.monotonic()
        if self.bars and label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total, note='')
        elif self.bars and done < self.bars.tasks[self.tasks[label]].completed:
            self.bars.reset(self.tasks[label])

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
    parts = ('{task.description}', p.BarColumn(), p.TaskProgressColumn(), p.TimeRemainingColumn())
    return p.Progress(*parts, '{task.fields[note]}', console=Console(stderr=True))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


# Figures that tables show, in this order: head of the column, format of the cell, unit.
_COLUMNS = {
    'model': ('Model', '', 1),
    'epoch': ('Epoch', '', 1),
    'loss': ('Loss', '.4f', 1),
    'top1': ('Top-1 (%)', '.2f', 1),
    'top5': ('Top-5 (%)', '.2f', 1),
    'images': ('Images', '', 1),
    'params': ('Params (M)', '.3f', 1e6),
    'macs': ('MACs (M)', '.2f', 1e6),
    'latency_ms': ('Latency (ms)', '.2f', 1),
    'latency_ratio': ('Latency ratio', '.2f', 1),
}


def figures(rows: list[dict[str, Any]]) -> str:
    """A table of those figures that all rows have."""
    columns = [key for key in _COLUMNS if all(row.get(key) is not None for row in rows)]
    cells = [[_cell(row[key], *_COLUMNS[key][1:]) for key in columns] for row in rows]
    return table([_COLUMNS[key][0] for key in columns], cells)


def _cell(value: Any, form: str, unit: float) -> str:
    return format(value if unit == 1 else value / unit, form)


def show(text: str) -> None:
    """Print text; a terminal with rich draws the Markdown tables in it."""
    if not (sys.stdout.isatty() and rich_progress):
        print(text, flush=True)
        return
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith('|')):
        if is_table:
            _draw([[cell.strip() for cell in line[1:-1].split(' |')] for line in lines])
        else:
            print('\n'.join(lines), flush=True)


def _draw(rows: list[list[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    head, _, *body = rows
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        # Names are there to be copied, so the first column keeps them whole.
        drawn.add_column(name, no_wrap=number == 0, justify='left' if number < 2 else 'right')
    for row in body:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)
