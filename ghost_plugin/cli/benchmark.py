"""The command ``benchmark``: models in turns on this machine, so that a slowdown affects all alike.

Two names of timm are compared eagerly, in training, too. ``grid`` times any models by any backends,
``forms`` and ``bf16`` our GhostNets against timm's that way, and ``convert`` the conversion itself.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..conversion import ConversionPlan
from ..conversion.api import plan
from ..deploy import fuse
from ..deploy.backends import TIMED
from ..profiling import Timing, time_together
from ..utils import optional
from ..utils.atomic_io import atomic_write
from .benchmark_grid import BACKENDS, run_grid
from .options import Command, Parser, device, target, whole
from .terminal import table

optional.require('timm')

import timm

PAIRS = {
    'ghostnet_plugin': 'ghostnet_100',
    'ghostnet_plugin_v2_100': 'ghostnetv2_100',
    'ghostnet_plugin_v3_100': 'ghostnetv3_100',
}
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def inference(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """A forward pass in eval mode without gradients."""
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(images)

    return step


def folded(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Inference after ``fuse`` for our models and timm's counterpart for others."""
    ours = hasattr(model, 'switch_to_deploy')
    return inference((fuse if ours else timm.utils.reparameterize_model)(model.eval()), images)


def training(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Forward, cross-entropy, backward and an SGD step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.randint(0, 1000, (len(images),), device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


MODES = {'inference': inference, 'folded': folded, 'training': training}


def measure(
    args: argparse.Namespace, models: list[str], mode: str, batch: int
) -> dict[tuple[str, str], Timing]:
    """Time models in both memory formats.

    Args:
        args: Options of the command.
        models: Names of timm.
        mode: A key of :data:`MODES`.
        batch: Batch size.

    Returns:
        Timings by (model, memory format).
    """
    tasks = {}
    for name in models:
        for form, memory_format in FORMATS.items():
            model = timm.create_model(name).to(args.device, memory_format=memory_format)
            images = torch.randn(batch, 3, args.size, args.size, device=args.device)
            tasks[name, form] = MODES[mode](model, images.to(memory_format=memory_format))
    return dict(zip(tasks, time_together(tasks, args.rounds, args.warmup), strict=True))


def _compare(args: argparse.Namespace, models: list[str]) -> Iterator[dict[str, Any]]:
    """Print the table of two models and yield the timings."""
    print(f'\n| Mode | Batch | Memory format | {models[0]} | {models[1]} | Ratio |')
    print('| --- | --- | --- | --- | --- | --- |')
    for mode in args.modes:
        for batch in args.batch:
            timings = measure(args, models, mode, batch)
            pairs = {form: [timings[name, form] for name in models] for form in FORMATS}
            pairs['best of both'] = [
                min((timings[name, form] for form in FORMATS), key=attrgetter('median'))
                for name in models
            ]
            for form, (mine, other) in pairs.items():
                cells = [f'{t.median:.1f} ({t.low:.1f} to {t.high:.1f})' for t in (mine, other)]
                ratio = f'{other.median / mine.median:.2f}'
                print('|', ' | '.join([mode, str(batch), form, *cells, ratio]), '|', flush=True)
            for (name, form), timing in timings.items():
                yield {'mode': mode, 'batch': batch, 'model': name, 'format': form,
                       **asdict(timing)}  # fmt: skip


def compare(args: argparse.Namespace) -> None:
    """Compare two models, or each of our GhostNets with timm's."""
    pairs = list(PAIRS.items()) if args.models == ['family'] else [args.models]
    unknown = [name for name in pairs[0] if not timm.is_model(name)]
    if len(pairs[0]) != 2 or unknown:
        said = f'; timm has no {", ".join(unknown)}' if unknown else ''
        raise ValueError(
            f'give two models, family, {", ".join(JOBS)}, got {len(args.models)}: '
            f'{args.models}{said}'
        )
    machine = platform.processor() or platform.machine()
    print(f'{machine}, {args.device}, {args.threads} threads, torch {torch.__version__}, float32')
    print(f'eager, {args.size} px, {args.rounds} rounds after {args.warmup}; '
          'median (quartiles), ms\na ratio above 1: the first is faster')  # fmt: skip
    found = []
    for pair in pairs:
        for row in _compare(args, list(pair)):
            found.append(row)
            _write(args.json, found)


def _write(path: Path | None, rows: list[dict[str, Any]]) -> None:
    if path:
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(rows, indent=1, default=str))


def grid(args: argparse.Namespace, models: list[str], backends: list[str]) -> None:
    """Time models by backends, print the table, write and draw it.

    Args:
        args: Options of the command.
        models: As :mod:`.benchmark_grid` names them.
        backends: Keys of ``ghost_plugin.deploy.backends.TIMED``.
    """
    if not models:
        raise ValueError('grid needs models, such as grid timm:resnet18 timm:resnet18@2')
    found = run_grid(models, backends, args.batch, args.cores or [args.threads], args.size,
                     args.rounds, args.warmup, args.device, args.plot, args.top1)  # fmt: skip
    _write(args.json, [asdict(one) for one in found])


def _ours(dtype: str) -> Callable[[argparse.Namespace], None]:
    """The grid of our GhostNets and timm's by all backends that compute in a dtype, or in less."""

    def run(args: argparse.Namespace) -> None:
        size = getattr(torch, dtype).itemsize
        backends = [
            row.name
            for row in TIMED.values()
            if row.runs_on(args.device) and getattr(torch, row.dtype).itemsize <= size
        ]
        models = [f'timm:{name}' for mine, other in PAIRS.items() for name in (other, mine)]
        grid(args, models, ['eager', *(name for name in backends if name != 'eager')])

    return run


IMAGES, BATCH = 256, 32
STEPS: dict[str, Callable[[nn.Module, torch.Tensor, ConversionPlan, list], Any]] = {
    'plan without data': lambda model, example, made, batches: plan(model, example),
    'conversion without data': lambda model, example, made, batches: made.apply(model),
    f'conversion calibrated on {IMAGES} images': lambda model, example, made, batches: made.apply(
        model, calibration=batches
    ),
}


def conversion_costs(args: argparse.Namespace) -> None:
    """Seconds and memory of converting ResNet-50, each step in a process of its own."""
    settings = 'resnet50', args.size, args.threads
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        rows = [pool.submit(measure_step, step, *settings).result() for step in STEPS]
    print(f'\n{settings[0]}, {args.size} px, {args.threads} threads')
    cells = [[r['step'], f'{r["seconds"]:.1f}', f'{r["megabytes"]:.0f}'] for r in rows]
    print(table(['Step', 'Seconds', 'Memory above one batch of inference (MB)'], cells))
    _write(args.json, rows)


def measure_step(step: str, name: str, size: int, threads: int) -> dict[str, Any]:
    """Time one step of a conversion on noise.

    Args:
        step: A key of :data:`STEPS`.
        name: A model of timm.
        size: Of the images, pixels.
        threads: Of torch.

    Returns:
        ``step``, ``seconds`` and ``megabytes`` above the peak of one inference.
    """
    torch.set_num_threads(threads)
    model = timm.create_model(name).eval()
    example = torch.randn(1, 3, size, size)
    batches = [torch.randn(BATCH, 3, size, size) for _ in range(IMAGES // BATCH)]
    made = plan(model, example)
    with torch.no_grad():
        model(batches[0])
    before, start = _peak(), time.monotonic()
    STEPS[step](model, example, made, batches)
    return {'step': step, 'seconds': time.monotonic() - start, 'megabytes': _peak() - before}


def _peak() -> float:
    """Largest resident memory of the process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


JOBS: dict[str, Callable[[argparse.Namespace], None]] = {
    'forms': _ours('float32'),
    'bf16': _ours('bfloat16'),
    'convert': conversion_costs,
    'grid': lambda args: grid(args, args.models[1:], args.backends),
}


def add_options(parser: Parser) -> None:
    """Add the options of ``benchmark``."""
    add = parser.add_argument
    add('models', nargs='*', default=['ghostnet_plugin', 'ghostnet_100'],
        help='two timm names, family, forms, bf16, convert, or grid MODEL ...')  # fmt: skip
    add('--modes', nargs='+', choices=list(MODES), default=list(MODES))
    add('--batch', nargs='+', type=whole, default=[1, 16], help='batch sizes (1 16)')
    add('--size', type=whole, default=224, help='of the images, pixels (%(default)s)')
    add('--rounds', type=whole, default=30, help='timed rounds of each (%(default)s)')
    add('--warmup', type=int, default=5, help='untimed calls before (%(default)s)')
    add('--threads', type=whole, default=torch.get_num_threads())
    add('--backends', nargs='+', default=BACKENDS, help='of grid (%(default)s)')
    add('--cores', nargs='+', type=whole, help='of grid: numbers of threads (--threads)')
    add('--plot', type=target, metavar='PNG', help='of grid: draw the latencies')
    add('--top1', type=Path, metavar='JSON', help='of grid: per cent by model, for the plot')
    add('--device', help='cuda if available, else cpu')
    add('--json', type=target, help='file for all results')
    parser.rename('--side', '--size')
    parser.rename('--picture', '--plot')


def run(args: argparse.Namespace) -> None:
    """Run one of the benchmarks."""
    args.device = device(args.device)
    torch.set_num_threads(args.threads)
    alone = len(args.models) == 1 or args.models[0] == 'grid'
    (JOBS.get(args.models[0], compare) if alone else compare)(args)


COMMANDS = {
    'benchmark': Command(add_options, run, """
ghost-plugin benchmark ghostnet_plugin ghostnet_100 --batch 1 16
ghost-plugin benchmark family
ghost-plugin benchmark grid timm:resnet18 timm:resnet18@2 --batch 1 16 --plot times.png
"""),
}  # fmt: skip
