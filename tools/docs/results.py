"""Tables of measured figures, from ``tools/studies/results.json`` alone."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / 'studies'))

from _results import load

from ghost_plugin.cli.terminal import table

Row = Mapping[str, Any]
Cell = Callable[[Row], str]


def value(key: str, form: str = '', unit: float = 1) -> Cell:
    """Make a cell of one value of a row, empty where the row lacks it.

    Args:
        key: Of the value.
        form: Format, such as ``'.2f'``.
        unit: The value is divided by it.
    """

    def cell(row: Row) -> str:
        found = row.get(key)
        if found is None:
            return ''
        return format(found / unit if unit != 1 else found, form)

    return cell


MILLION = 1e6
PARAMS = value('params', '.3f', MILLION)
MACS = value('macs', '.2f', MILLION)


@dataclass(frozen=True)
class Layout:
    """How the rows of a study become a table.

    Attributes:
        columns: Title and cell of each column.
        rows: Chooses and orders the rows.
    """

    columns: Mapping[str, Cell]
    rows: Callable[[Sequence[Row]], Sequence[Row]] = list


LAYOUTS = {
    'convert_digits': Layout(
        {
            'Model': value('model'),
            'Top-1 (%)': value('top1', '.2f'),
            'Params (M)': PARAMS,
            'MACs (M)': MACS,
            'Latency (ms)': value('latency_ms', '.2f'),
            'Latency ratio': value('latency_ratio', '.2f'),
        }
    ),
    'quickstart': Layout(
        {
            'Task': value('task'),
            'Model': value('model'),
            'Params (M)': PARAMS,
            'MACs (M)': MACS,
            'Image (px)': value('size'),
            'Metric': value('unit'),
            'Value': value('metric', '.3f'),
        }
    ),
    'cifar': Layout(
        {
            'Case': value('case'),
            'MACs (M)': value('macs_M', '.2f'),
            'Teacher (%)': value('teacher', '.2f'),
            'Converted (%)': value('converted', '.2f'),
            'Distilled (%)': value('distilled', '.2f'),
        }
    ),
    'convert_detector': Layout(
        {
            'Model': value('model'),
            'AP': value('metric', '.3f'),
            'Params (M)': PARAMS,
            'MACs (M) at 160 px': MACS,
        }
    ),
    'efficientnet_lite0': Layout(
        {
            'Draw': value('draw'),
            'MACs': value('macs_share', '.0%'),
            'Ghost convs start from': value('way'),
            'Top-1 (%)': value('top1', '.1f'),
            'Divergence': value('divergence', '.3f'),
            'CPU time (s)': value('cpu_seconds'),
        }
    ),
}


def provenance(name: str) -> str:
    """How, where and when a study was run."""
    study = load()[name]
    versions = ', '.join(f'{package} {number}' for package, number in study['versions'].items())
    lines = [
        '```bash',
        study['command'],
        '```',
        '',
        f'{study["date"]}, commit {study["commit"]}; {study["machine"]}; threads: '
        f'{study["threads"]}; load average {study["load"]}; {versions}.',
    ]
    return '\n'.join([*lines, study['note']] if study['note'] else lines)


def study_table(name: str) -> str:
    """The provenance of a study and its table."""
    layout = LAYOUTS[name]
    rows = layout.rows(load()[name]['rows'])
    cells = [[cell(row) for cell in layout.columns.values()] for row in rows]
    return f'{provenance(name)}\n\n{table(list(layout.columns), cells)}'


BLOCKS: dict[str, Callable[[], str]] = {
    f'results-{name}': functools.partial(study_table, name) for name in load()
}
