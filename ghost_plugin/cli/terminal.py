"""Progress and tables on the terminal, drawn by rich; plain lines in files and pipes."""

import sys
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from ..conversion.progress import Progress

_SECONDS_PER_LINE = 20.0  # in files


class Meter:
    """Progress on standard error: bars on a terminal, else one line every 20 seconds.

    Use it as a context manager and call it with (label, done, total, note).
    """

    def __init__(self) -> None:
        self.bars: Bars | None = None
        if sys.stderr.isatty():
            columns = ('{task.description}', BarColumn(), TaskProgressColumn(),
                       TimeRemainingColumn(), '{task.fields[note]}')  # fmt: skip
            self.bars = Bars(*columns, console=Console(stderr=True))
        self.tasks: dict[str, TaskID] = {}
        self.label, self.first, self.started, self.shown = '', 0, 0.0, 0.0

    def __enter__(self) -> 'Meter':
        if self.bars:
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

    def __call__(self, label: str, done: int, total: int, note: str = '') -> None:
        if self.bars is None:
            self._line(label, done, total, note)
            return
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total, note='')
        elif done < self.bars.tasks[self.tasks[label]].completed:
            self.bars.reset(self.tasks[label])
        self.bars.update(self.tasks[label], completed=done, total=total, note=note)

    def show(self, event: Progress) -> None:
        """Show the progress of a conversion."""
        self(event.stage, event.done, event.total)

    def _line(self, label: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if label != self.label:
            self.label, self.first, self.started, self.shown = label, done - 1, now, now
        slow = now - self.started > _SECONDS_PER_LINE
        if now - self.shown < _SECONDS_PER_LINE and not (done == total and slow):
            return
        self.shown = now
        left = int((now - self.started) / max(done - self.first, 1) * (total - done))
        parts = [f'{100 * done // total} %', *([note] if note else [])]
        line = f'{label}: {", ".join(parts)}, {left // 60}:{left % 60:02d} left'
        print(line, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        head: Titles of the columns.
        rows: Cells of each row.
    """
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


# Columns of result tables: title, format and unit by the name of the value.
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


def figures(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of those known values that all rows have."""
    columns = [
        (key, rest)
        for key, (_, *rest) in _COLUMNS.items()
        if all(row.get(key) is not None for row in rows)
    ]
    cells = [
        [format(row[key] if unit == 1 else row[key] / unit, form) for key, (form, unit) in columns]
        for row in rows
    ]
    return table([_COLUMNS[key][0] for key, _ in columns], cells)


def show(text: str) -> None:
    """Print a text; a terminal shows its Markdown tables drawn."""
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith('|')):
        if is_table:
            _draw([[cell.strip() for cell in line[1:-1].split(' |')] for line in lines])
        else:
            print('\n'.join(lines), flush=True)


def _draw(rows: list[list[str]]) -> None:
    head, _, *body = rows
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        # The first column holds names to copy, so it is never wrapped.
        drawn.add_column(name, no_wrap=index == 0, justify='left' if index < 2 else 'right')
    for row in body:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)
