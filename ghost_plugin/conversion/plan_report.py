"""A plan as a table and as a picture."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..utils import optional
from .layer_plan import LayerPlan
from .selection import REASONS


def table(rows: Sequence[LayerPlan], totals: Mapping[str, int]) -> str:
    """In Markdown, with the whole model's totals and what the reasons mean.

    Args:
        rows: Of a plan.
        totals: Of the whole model.

    Returns:
        The table; below it the reasons, and which share of the multiply-adds no row has.
    """
    lines = [
        '| Conv | Kind | Decision | Ratio | Params (k) | MACs (M) | Error |',
        '| --- | --- | --- | --- | --- | --- | --- |',
        *map(_line, rows),
    ]
    params, macs = _change(totals, 'params', 1e3), _change(totals, 'macs', 1e6)
    lines.append(f'| whole model | | | | {params} | {macs} | |')
    codes = sorted({row.reason for row in rows if row.reason})
    lines += [f'{code}: {REASONS.get(code, code)}' for code in codes]
    elsewhere = totals['macs_before'] - sum(row.costs['macs_before'] for row in rows)
    if elsewhere > 0.0005 * totals['macs_before']:
        lines.append(
            f'{100 * elsewhere / totals["macs_before"]:.1f} % of the multiply-adds stand in no '
            'row: nn.Linear and convolutions that are called as functions (F.conv2d)'
        )
    return '\n'.join(lines)


def _change(numbers: Mapping[str, Any], what: str, unit: float) -> str:
    before, after = (numbers[f'{what}_{when}'] / unit for when in ('before', 'after'))
    return f'{before:.2f}' if before == after else f'{before:.2f} to {after:.2f}'


def _line(row: LayerPlan) -> str:
    decision = 'convert' if row.converts else f'keep ({row.reason or "edited"})'
    ratio = f'{row.ratio:g}' if row.converts else ''
    error = '' if row.error is None else f'{row.error:.3f}'
    return (
        f'| {row.name} | {row.shape.kind} | {decision} | {ratio} | '
        f'{_change(row.costs, "params", 1e3)} | {_change(row.costs, "macs", 1e6)} | {error} |'
    )


def draw(rows: Sequence[LayerPlan], title: str, path: str | os.PathLike) -> None:
    """Multiply-adds before and after of each conv, and its error below, as a PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    optional.require('matplotlib')
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    places = range(len(rows))
    width = max(6.0, 0.22 * len(rows))
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(width, 5.2), height_ratios=(3, 1)
    )
    for when, colour in (('before', 'lightgray'), ('after', 'tab:blue')):
        above.bar(places, [r.costs[f'macs_{when}'] / 1e6 for r in rows], color=colour, label=when)
    above.set(title=title, ylabel='multiply-adds (M)')
    above.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize=8)
    below.bar(places, [row.error or 0 for row in rows], color='tab:orange')
    below.set(ylabel='relative error')
    below.set_xticks(list(places), [row.name for row in rows], rotation=90, fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
