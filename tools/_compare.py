"""The benchmark's table of two models: inference and training step, eager, both memory formats."""

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from operator import attrgetter

import timm
import torch
from _modes import MODES

from ghost_plugin.profiling import Timing, time_together

FAMILY = {
    'ghostnet_plugin': 'ghostnet_100',
    'ghostnet_plugin_v2_100': 'ghostnetv2_100',
    'ghostnet_plugin_v3_100': 'ghostnetv3_100',
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
            f'give two models, family, forms, bf16, convert or grid, got {len(models)}: '
            f'{models}{said}'
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
