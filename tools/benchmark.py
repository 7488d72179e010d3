#!/usr/bin/env python3
"""Time one model against another in one run: inference and training step, eager, on this machine.

Both models take turns call by call, so a machine that slows down slows both. Each is measured in
both memory formats; the ratio compares like with like, and the last column the best of each.
``benchmark.py family`` does that for V1, V2 and V3 against timm's own, ``benchmark.py bf16`` in
bfloat16 with each side's best forms, for GPUs above all; ``benchmark.py convert`` says what
converting ResNet-50 costs; ``benchmark.py grid MODEL [MODEL ...]`` times any models by any
backends. There a model is ``timm:NAME``, a config and so on, and ``MODEL@2`` (a ratio) or
``MODEL@PLAN.json`` its conversion.
"""

import argparse
import functools
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

import timm
import torch
from _bf16_table import bf16_table
from _cli import tool
from _conversion_costs import conversion_costs
from _grid import BACKENDS, run_grid
from _modes import MODES
from _options import Parser, device, target, whole

from ghost_plugin._files import whole_file
from ghost_plugin.analysis import Timing, time_together

FAMILY = {
    'ghostnet_plugin': 'ghostnet_100',
    'ghostnet_plugin_v2_100': 'ghostnetv2_100',
    'ghostnet_plugin_v3_100': 'ghostnetv3_100',
}
JOBS = {
    'bf16': lambda args, keep: keep(bf16_table(args, FAMILY)),
    'convert': lambda args, keep: keep(conversion_costs('resnet50', args.side)),
}
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def measure(
    args: argparse.Namespace, models: list[str], mode: str, batch: int
) -> dict[tuple[str, str], Timing]:
    """Timings by (model, memory format)."""
    tasks = {}
    for name in models:
        for form, memory_format in FORMATS.items():
            model = timm.create_model(name).to(args.device, memory_format=memory_format)
            images = torch.randn(batch, 3, args.side, args.side, device=args.device)
            tasks[name, form] = MODES[mode](model, images.to(memory_format=memory_format))
    return dict(zip(tasks, time_together(tasks, args.rounds, args.warmup), strict=True))


def table(models: list[str], mode: str, batch: int, timings: dict) -> list[str]:
    """One line per memory format, and one for the best of each model."""
    lines = [
        _line(mode, batch, form, *(timings[name, form] for name in models)) for form in FORMATS
    ]
    median = attrgetter('median')
    best = [min((timings[name, form] for form in FORMATS), key=median) for name in models]
    return [*lines, _line(mode, batch, 'best of both', *best)]


def compare(args: argparse.Namespace, models: list[str]) -> Iterator[list[dict]]:
    """Print the table of two models; its figures, by mode and batch."""
    print(f'\n| Mode | Batch | Memory format | {models[0]} | {models[1]} | Ratio |')
    print('| --- | --- | --- | --- | --- | --- |')
    for mode in args.modes:
        for batch in args.batch:
            timings = measure(args, models, mode, batch)
            print('\n'.join(table(models, mode, batch, timings)), flush=True)
            yield [
                {'mode': mode, 'batch': batch, 'model': name, 'format': form, **asdict(timing)}
                for (name, form), timing in timings.items()
            ]


def _line(mode: str, batch: int, form: str, mine: Timing, other: Timing) -> str:
    cells = [f'{t.median:.1f} ({t.low:.1f} to {t.high:.1f})' for t in (mine, other)]
    ratio = other.median / mine.median
    return f'| {mode} | {batch} | {form} | {cells[0]} | {cells[1]} | {ratio:.2f} |'


def _pairs(models: list[str]) -> list[list[str]]:
    if models == ['family']:
        return [list(pair) for pair in FAMILY.items()]
    unknown = [name for name in models if not timm.is_model(name)]
    if len(models) != 2 or unknown:
        said = f'; timm has no {", ".join(unknown)}' if unknown else ''
        raise ValueError(
            f'give two models, family, bf16, convert or grid, got {len(models)}: {models}{said}'
        )
    return [models]


def compare_all(args: argparse.Namespace, keep: Callable[[list[dict]], None]) -> None:
    """Say how it is measured, then measure every pair; what is there is kept after each batch."""
    pairs = _pairs(args.models)
    machine = platform.processor() or platform.machine()
    print(f'{machine}, {args.device}, {args.threads} threads, torch {torch.__version__}, float32')
    print(
        f'eager, {args.side} px, {args.rounds} rounds after {args.warmup}; median (quartiles), ms'
    )
    print('a ratio above 1: the first is faster')
    figures = []
    for pair in pairs:
        for rows in compare(args, pair):
            figures += rows
            keep(figures)


def _write(path: Path | None, figures: list[dict]) -> None:
    if path:
        with whole_file(path) as partial:
            partial.write_text(json.dumps(figures, indent=1, default=str))


@tool
def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('models', nargs='*', default=['ghostnet_plugin', 'ghostnet_100'],
        help='two timm names, family, bf16, convert, grid MODEL ...')  # fmt: skip
    add('--modes', nargs='+', choices=list(MODES), default=list(MODES))
    add('--batch', nargs='+', type=whole, default=[1, 16], help='images per call')
    add('--side', type=whole, default=224, help='of the images, pixels')
    add('--rounds', type=whole, default=30, help='timed calls or turns of each')
    add('--warmup', type=int, default=5, help='untimed calls before that')
    add('--threads', type=whole, default=torch.get_num_threads())
    add('--backends', nargs='+', default=BACKENDS, help='of grid; %(default)s')
    add('--cores', nargs='+', type=whole, help='of grid: numbers of threads; or --threads')
    add('--picture', type=target, metavar='PNG', help='of grid')
    add('--top1', type=Path, metavar='JSON', help='of grid: per cent by model, for the picture')
    add('--device', help='cuda where there is one, else cpu')
    add('--json', type=target, help='file for all figures')
    args = parser.parse_args()
    args.device = device(args.device)
    torch.set_num_threads(args.threads)
    args.cores = args.cores or [args.threads]
    keep = functools.partial(_write, args.json)
    if args.models[0] == 'grid':
        run_grid(args, keep)
    else:
        JOBS.get(' '.join(args.models), compare_all)(args, keep)


if __name__ == '__main__':
    main()
