"""A plan as a table and as a drawing."""

import os
from collections.abc import Mapping

from ..utils import optional
from .plan import SETTINGS, ConversionPlan, LayerPlan
from .reasons import REASONS


def table(plan: ConversionPlan) -> str:
    """Write a table in Markdown.

    Returns:
        A line per layer and the totals; below them the meaning of the reasons, and the share of
        the multiply-adds that are in no layer.
    """
    layers, totals = plan.layers, plan.totals
    lines = [
        '| Conv | Kind | Decision | Ratio | Params (k) | MACs (M) | Error |',
        '| --- | --- | --- | --- | --- | --- | --- |',
        *map(_line, layers),
    ]
    params, macs = _change(totals, 'params', 1e3), _change(totals, 'macs', 1e6)
    lines.append(f'| whole model | | | | {params} | {macs} | |')
    codes = sorted({layer.reason for layer in layers if layer.reason})
    notes = [f'{code}: {REASONS.get(code, code)}' for code in codes]
    elsewhere = totals['macs_before'] - sum(layer.costs['macs_before'] for layer in layers)
    if elsewhere > 0.0005 * totals['macs_before']:
        notes.append(
            f'{100 * elsewhere / totals["macs_before"]:.1f} % of the multiply-adds stand in no '
            'row: nn.Linear and convolutions that are called as functions (F.conv2d)'
        )
    if plan.divergence:
        notes.append(
            f'divergence {plan.divergence["measured"]:.3g} on images that were held back, '
            f'at most {plan.divergence["limit"]:g} was asked for'
        )
    return '\n'.join([*lines, '', *notes] if notes else lines)


def _change(costs: Mapping[str, int], name: str, unit: float) -> str:
    before, after = (costs[f'{name}_{when}'] / unit for when in ('before', 'after'))
    return f'{before:.2f}' if before == after else f'{before:.2f} to {after:.2f}'


def _line(layer: LayerPlan) -> str:
    decision = 'convert' if layer.converts else f'keep ({layer.reason or "edited"})'
    ratio = f'{layer.ratio:g}' if layer.converts else ''
    for name in ('dw_size', 'group_size'):
        if layer.converts and getattr(layer, name) != SETTINGS[name]:
            ratio += f', {name} {getattr(layer, name)}'
    error = '' if layer.error is None else f'{layer.error:.3f}'
    return (
        f'| {layer.name} | {layer.shape.kind} | {decision} | {ratio} | '
        f'{_change(layer.costs, "params", 1e3)} | {_change(layer.costs, "macs", 1e6)} | {error} |'
    )


def draw(plan: ConversionPlan, path: str | os.PathLike[str]) -> None:
    """Draw multiply-adds before and after of each conv, and its error below.

    Args:
        plan: A plan, applied or not.
        path: PNG file to write.

    Raises:
        ImportError: matplotlib is missing.
    """
    optional.require('matplotlib')
    from matplotlib.figure import Figure  # pyplot would change the backend of a notebook

    layers, totals = plan.layers, plan.totals
    share = totals['macs_after'] / max(1, totals['macs_before'])
    title = f'{100 * share:.1f} % of {totals["macs_before"] / 1e6:.1f} M multiply-adds'
    places = range(len(layers))
    width = max(6.0, 0.22 * len(layers))
    figure = Figure(figsize=(width, 5.2))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for when, colour in (('before', 'lightgray'), ('after', 'tab:blue')):
        above.bar(places, [r.costs[f'macs_{when}'] / 1e6 for r in layers], color=colour, label=when)
    above.set(title=f'{plan.model}: {title}', ylabel='multiply-adds (M)')
    above.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize=8)
    below.bar(places, [layer.error or 0 for layer in layers], color='tab:orange')
    below.set(ylabel='relative error')
    below.set_xticks(list(places), [layer.name for layer in layers], rotation=90, fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
