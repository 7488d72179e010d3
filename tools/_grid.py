"""The benchmark's grid: any models by any backends, batches and threads, in turns."""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

from ghost_plugin.cli.benchmark_grid import Figure, draw, grid, verdicts
from ghost_plugin.cli.terminal import Meter, show, table
from ghost_plugin.utils.optional import require

BACKENDS = ['eager', 'channels-last', 'channels-last-split', 'compiled', 'onnxruntime',
            'onnxruntime-split', 'openvino', 'openvino-split']  # fmt: skip
_HEAD = ['Model', 'Backend', 'Batch', 'Threads', 'ms', 'pictures/s', 'MB', 'Difference', '']


def run_grid(args: argparse.Namespace, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """Measure, print the table and what follows from it, keep the figures, draw them."""
    if len(args.models) < 2:
        raise ValueError('grid needs models, such as grid timm:resnet18 timm:resnet18@2')
    top1 = _top1(args)
    size = (args.side, args.side)
    with Meter() as meter:
        found = grid(args.models[1:], args.backends, args.batch, args.cores, size, args.rounds,
                     args.warmup, meter, args.device)  # fmt: skip
    show(table(_HEAD, [_cells(figure) for figure in found]))
    load = ' '.join(f'{value:.1f}' for value in os.getloadavg())
    show('\n'.join(['', *verdicts(found), f'load of the machine (1, 5, 15 min): {load}']))
    keep([figure.as_dict() for figure in found])
    if args.picture:
        draw(found, args.picture, top1)


def _top1(args: argparse.Namespace) -> dict[str, float] | None:
    """Accuracies for the picture, which must be one that can be drawn; before all measuring."""
    if args.picture:
        require('matplotlib')
        from matplotlib.backend_bases import FigureCanvasBase

        known = sorted(FigureCanvasBase.get_supported_filetypes())
        if args.picture.suffix[1:].lower() not in known:
            raise ValueError(f'--picture must end in one of {known}, got {str(args.picture)!r}')
    return json.loads(args.top1.read_text()) if args.top1 else None


def _cells(figure: Figure) -> list[str]:
    cells = [figure.model, figure.backend, str(figure.batch), str(figure.threads)]
    if figure.median is None:
        return [*cells, '', '', '', '', figure.reason]
    spread = f'{figure.median:.2f} ({figure.low:.2f} to {figure.high:.2f})'
    memory = '' if figure.memory is None else f'{figure.memory:.0f}'
    speed = f'{1000 * figure.batch / figure.median:.0f}'
    return [*cells, spread, speed, memory, f'{figure.difference:.1e}', '']
