"""The command ``benchmark``: any models by any backends, timed in alternation on this machine.

A model is named as in :mod:`.model_loading`, or by timm alone; ``NAME@PLAN.json`` is its conversion
by a plan and ``NAME@2`` its conversion with ratio 2, both fitted without images.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..conversion import ConversionPlan
from ..conversion.api import convert, plan
from ..deploy.backends import TIMED, ModelVariants, check_backend
from ..profiling import MIN_ROUND_MS, time_together
from ..utils import optional
from ..utils.atomic_io import atomic_write
from ..utils.modules import plain_forward
from .model_loading import LoadedModel, load
from .options import Command, Parser, device, target, whole
from .terminal import Meter, show, table

BACKENDS = ['eager', 'channels-last', 'compiled', 'onnxruntime', 'openvino']
TRAINING = {
    'training': torch.contiguous_format,
    'training-channels-last': torch.channels_last,
}
_MODES = {'inference': ['eager'], 'folded': ['fused', 'channels-last'], 'training': list(TRAINING)}
# timm's networks and ours.
PAIRS = (
    ('ghostnet_100', 'ghostnet_plugin'),
    ('ghostnetv2_100', 'ghostnet_plugin_v2_100'),
    ('ghostnetv3_100', 'ghostnet_plugin_v3_100'),
)


@dataclass(frozen=True)
class Measurement:
    """One model by one backend.

    Attributes:
        model, backend: Names.
        batch, threads: Batch size; threads of every library.
        median, low, high: Milliseconds of a call, with quartiles; None if it did not run.
        memory: Megabytes that the process grew by for building and first calls; None off Linux.
        difference: Of the outputs from the plain model's, as a share of their size.
        reason: Why it did not run.
    """

    model: str
    backend: str
    batch: int
    threads: int
    median: float | None = None
    low: float | None = None
    high: float | None = None
    memory: float | None = None
    difference: float | None = None
    reason: str = ''


@dataclass(frozen=True)
class Settings:
    """Settings of a timing.

    Attributes:
        backends: Keys of :data:`ghost_plugin.deploy.backends.TIMED` and of :data:`TRAINING`.
        batches, threads: Each is a run of its own.
        size: Of the images, (height, width); each model's own if None.
        rounds, warmup: Rounds of each model and backend, 20 ms or one call, and untimed calls.
        device: Of models and images.
    """

    backends: Sequence[str]
    batches: Sequence[int] = (1,)
    threads: Sequence[int] = (1,)
    size: tuple[int, int] | None = None
    rounds: int = 20
    warmup: int = 3
    device: str = 'cpu'


@plain_forward()
def measure(
    models: Sequence[str],
    settings: Settings,
    load_model: Callable[[str, tuple[int, int] | None], LoadedModel] | None = None,
) -> list[Measurement]:
    """Time all models by all backends, in alternation for each batch size and number of threads.

    Args:
        models: Names, see above.
        settings: How.
        load_model: Loads a name for a size of images; :func:`load_variant` if None.

    Returns:
        One measurement per model, backend, batch size and number of threads.

    Raises:
        ValueError: No such model or backend.
    """
    for name in set(settings.backends) - TRAINING.keys():
        check_backend(name, TIMED)
    load_model = load_model or load_variant
    sources = {name: load_model(name, settings.size) for name in models}
    before, found = torch.get_num_threads(), []
    try:
        for threads in settings.threads:
            torch.set_num_threads(threads)
            for batch in settings.batches:
                found += _measure(sources, settings, batch, threads)
    finally:
        torch.set_num_threads(before)
    return found


def load_variant(name: str, size: tuple[int, int] | None = None) -> LoadedModel:
    """Load a model, and convert it if its name says so.

    Args:
        name: A name of :mod:`.model_loading`, with ``@RATIO`` or ``@PLAN.json`` if converted.
        size: Of the images, (height, width).
    """
    plain, _, how = name.partition('@')
    torch.manual_seed(0)
    source = load(plain).adjusted(size)
    if not how:
        return source
    if how.endswith('.json'):
        model = ConversionPlan.load(Path(how)).apply(source.model)
    else:
        try:
            ratio = float(how)
        except ValueError:
            raise ValueError(
                f'a plan (.json) or a ratio follows @, got {how!r} in {name!r}'
            ) from None
        model = convert(source.model, source.example(), ratio=ratio)[0]
    return replace(source, model=model.eval())


def _measure(
    sources: dict[str, LoadedModel], settings: Settings, batch: int, threads: int
) -> list[Measurement]:
    tasks: dict[Any, Callable[[], Any]] = {}
    found: dict[tuple[str, str], Measurement] = {}
    with Meter() as meter:
        for name, source in sources.items():
            shape = batch, 3, *source.preprocessing.size
            images = source.wrap(torch.randn(shape, device=settings.device))
            variants = ModelVariants(source.model.to(settings.device), images)
            for backend in settings.backends:
                total = len(sources) * len(settings.backends)
                meter('building', len(found) + 1, total, f'{name}, {backend}')
                empty = Measurement(name, backend, batch, threads)
                found[name, backend], run = _build(empty, variants)
                if run is not None:
                    tasks[name, backend] = run
    for timing in time_together(
        tasks, settings.rounds, settings.warmup, rest=True, min_ms=MIN_ROUND_MS
    ):
        found[timing.name] = replace(
            found[timing.name], median=timing.median, low=timing.low, high=timing.high
        )
    return list(found.values())


def _build(
    empty: Measurement, variants: ModelVariants
) -> tuple[Measurement, Callable[[], Any] | None]:
    if empty.backend in TRAINING:
        memory_format = TRAINING[empty.backend]
        model = copy.deepcopy(variants.model).to(memory_format=memory_format)
        step = train_step(model, variants.example[0].to(memory_format=memory_format))
        try:
            step()
        except Exception as error:  # no classifier, or too few pixels for its norms
            return replace(empty, reason=f'{type(error).__name__}: {error}'), None
        return empty, step
    before = _resident()
    made = TIMED[empty.backend].try_build(variants, calls=2)
    if made.run is None:
        return replace(empty, reason=made.reason), None
    grown = None if before is None else max(0.0, _resident() - before)
    found = replace(empty, memory=grown, difference=made.difference.typical)
    return found, partial(made.run, variants.example)


def train_step(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Make a function that does a training step: forward, cross-entropy, backward, SGD.

    Args:
        model: A classifier.
        images: (N, 3, H, W).
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _resident() -> float | None:
    """Resident memory of this process in megabytes."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def verdicts(found: Sequence[Measurement]) -> list[str]:
    """A sentence per model, batch size and threads: the best backend, and a conversion's gain."""
    best: dict[tuple[str, int, int], Measurement] = {}
    for one in found:
        key = (one.model, one.batch, one.threads)
        if one.median and one.backend not in TRAINING:
            best[key] = min(best.get(key, one), one, key=lambda other: other.median)
    return [_verdict(one, best) for one in best.values()]


def _verdict(one: Measurement, best: dict[tuple[str, int, int], Measurement]) -> str:
    text = (
        f'{one.model}, batch {one.batch}, {one.threads} threads: fastest by {one.backend}, '
        f'{one.median:.2f} ms'
    )
    plain, converted, _ = one.model.partition('@')
    other = best.get((plain, one.batch, one.threads)) if converted else None
    if other is None:
        return text
    ratio = other.median / one.median
    said = 'gains' if ratio > 1 else 'does NOT gain, the plain network wins'
    return f'{text}; the conversion {said}: {ratio:.2f} times as fast as {plain} at its best'


def results(found: Sequence[Measurement]) -> str:
    """A Markdown table; the ratio compares with the first model by the same backend."""
    first = {
        (one.backend, one.batch, one.threads): one.median
        for one in found
        if one.model == found[0].model
    }
    rows = []
    for one in found:
        cells = [one.model, one.backend, str(one.batch), str(one.threads)]
        if one.median is None:
            rows.append([*cells, '', '', '', '', '', one.reason])
            continue
        base = first[one.backend, one.batch, one.threads]
        rows.append(
            [
                *cells,
                f'{one.median:.2f} ({one.low:.2f} to {one.high:.2f})',
                f'{base / one.median:.2f}' if base else '',
                f'{1000 * one.batch / one.median:.0f}',
                '' if one.memory is None else f'{one.memory:.0f}',
                '' if one.difference is None else f'{one.difference:.1e}',
                '',
            ]
        )
    head = ['Model', 'Backend', 'Batch', 'Threads', 'ms', 'Ratio', 'images/s', 'MB', 'Difference']
    return table([*head, ''], rows)


def draw(found: Sequence[Measurement], path: str | os.PathLike, top1: dict | None) -> None:
    """Plot the latency of each model and backend, against accuracy if that is given.

    Args:
        found: Measurements.
        path: Image file.
        top1: Accuracy in per cent by model.
    """
    from matplotlib.figure import Figure

    shown = [one for one in found if one.median]
    figure = Figure(figsize=(8, 0.8 + (4 if top1 else 0.3 * len(shown))), layout='constrained')
    axes = figure.add_subplot()
    axes.set_xlabel('milliseconds a call, median')
    labels = [f'{m.model}, {m.backend}, batch {m.batch}, {m.threads} threads' for m in shown]
    if top1:
        for one, label in zip(shown, labels, strict=True):
            if one.model in top1:
                axes.plot(one.median, top1[one.model], 'o', label=label)
        axes.set_ylabel('top-1, %')
        axes.legend(fontsize=6)
    else:
        spread = [[m.median - m.low for m in shown], [m.high - m.median for m in shown]]
        axes.barh(labels, [m.median for m in shown], xerr=spread)
        axes.invert_yaxis()
        axes.tick_params(axis='y', labelsize=7)
    figure.savefig(path, dpi=120)


IMAGES, BATCH = 256, 32
STEPS: dict[str, Callable[[nn.Module, torch.Tensor, ConversionPlan, list], Any]] = {
    'plan without data': lambda model, example, made, batches: plan(model, example),
    'conversion without data': lambda model, example, made, batches: made.apply(model),
    f'conversion calibrated on {IMAGES} images': lambda model, example, made, batches: made.apply(
        model, calibration=batches
    ),
}


def conversion_costs(name: str, size: int, threads: int) -> list[dict[str, Any]]:
    """Measure and print the costs of converting a model, each step in a process of its own.

    Args:
        name: A model of timm.
        size: Of the images, pixels.
        threads: Of torch.
    """
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        rows = [pool.apply(measure_step, (step, name, size, threads)) for step in STEPS]
    print(f'{name}, {size} px, {threads} threads')
    cells = [[r['step'], f'{r["seconds"]:.1f}', f'{r["megabytes"]:.0f}'] for r in rows]
    show(table(['Step', 'Seconds', 'Memory above one batch of inference (MB)'], cells))
    return rows


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
    model = load(f'timm:{name}').model
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


def add_options(parser: Parser) -> None:
    """Add the options of ``benchmark``."""
    add = parser.add_argument
    add('models', nargs='*', default=['ghostnet_100', 'ghostnet_plugin'], metavar='MODEL',
        help="models; or family, forms, bf16: timm's GhostNets and ours, by few backends, all in "
        'float32, all; or convert: the costs of a conversion')  # fmt: skip
    add('--backends', nargs='+', default=BACKENDS, help=f'%(default)s; also {list(TRAINING)}')
    add('--batch', nargs='+', type=whole, default=[1, 16], help='batch sizes (1 16)')
    add('--size', type=whole, default=224, help='of the images, pixels (%(default)s)')
    add('--rounds', type=whole, default=30, help='timed rounds of each (%(default)s)')
    add('--warmup', type=int, default=5, help='untimed calls before (%(default)s)')
    add(
        '--threads',
        nargs='+',
        type=whole,
        default=[torch.get_num_threads()],
        help='numbers of threads, each a run of its own; all cores without',
    )
    add('--plot', type=target, metavar='PNG', help='draw the latencies')
    add('--top1', type=Path, metavar='JSON', help='accuracy in per cent by model, for the plot')
    add('--device', help='cuda if available, else cpu')
    add('--json', type=target, help='file for all results')
    add('--modes', nargs='+', choices=list(_MODES), help=argparse.SUPPRESS)
    for former, name in {'--side': 'size', '--picture': 'plot', '--cores': 'threads'}.items():
        parser.rename(former, f'--{name}')


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and the verdicts, write and draw."""
    args.device = device(args.device)
    found: list[Any] = []
    if args.models == ['convert']:
        found = conversion_costs('resnet50', args.size, args.threads[0])
    else:
        top1 = _top1(args)
        groups, backends = _groups(args)
        settings = Settings(backends, args.batch, args.threads, (args.size, args.size),
                            args.rounds, args.warmup, args.device)  # fmt: skip
        machine = platform.processor() or platform.machine()
        print(f'{machine}, {args.device}, torch {torch.__version__}, {args.size} px; ms: median')
        print(f'(quartiles) of {args.rounds} rounds; a ratio above 1: faster than the first model')
        for models in groups:
            rows = measure(models, settings)
            load_average = ' '.join(f'{value:.1f}' for value in os.getloadavg())
            show('\n'.join([results(rows), '', *verdicts(rows)]))
            print(f'load of the machine (1, 5, 15 min): {load_average}\n')
            found += rows
        if args.plot:
            draw(found, args.plot, top1)
        found = [asdict(one) for one in found]
    if args.json:
        with atomic_write(args.json) as partial_file:
            partial_file.write_text(json.dumps(found, indent=1))


def _top1(args: argparse.Namespace) -> dict[str, float] | None:
    """Accuracies for the plot, after a check that it can be drawn."""
    if args.plot:
        optional.require('matplotlib')
        from matplotlib.backend_bases import FigureCanvasBase

        known = sorted(FigureCanvasBase.get_supported_filetypes())
        if args.plot.suffix[1:].lower() not in known:
            raise ValueError(f'--plot must end in one of {known}, got {str(args.plot)!r}')
    return json.loads(args.top1.read_text()) if args.top1 else None


def _groups(args: argparse.Namespace) -> tuple[list[list[str]], list[str]]:
    """Models that are timed together, and the backends."""
    backends = args.backends
    if args.modes:
        print('warning: --modes is called --backends now', file=sys.stderr)
        backends = [name for mode in args.modes for name in _MODES[mode]]
    dtypes = {'forms': ('float32',), 'bf16': ('float32', 'bfloat16')}
    name = args.models[0]
    if args.models == ['family'] and backends is BACKENDS:
        backends = ['eager', 'fused', 'channels-last', *TRAINING]
    elif len(args.models) == 1 and name in dtypes:
        backends = [
            row.name
            for row in TIMED.values()
            if row.dtype in dtypes[name] and row.runs_on(args.device)
        ]
    if len(args.models) == 1 and name in ('family', *dtypes):
        return [[f'timm:{one}' for one in pair] for pair in PAIRS], list(dict.fromkeys(backends))
    models = args.models[1:] if name == 'grid' else args.models
    if not models:
        raise ValueError('grid needs models, such as grid timm:resnet18 timm:resnet18@2')
    named = [one if ':' in one or '.py' in one else f'timm:{one}' for one in models]
    return [named], list(backends)


COMMANDS = {
    'benchmark': Command(add_options, run, """
ghost-plugin benchmark ghostnet_100 ghostnet_plugin --batch 1 16 --backends eager training
ghost-plugin benchmark family
ghost-plugin benchmark timm:resnet18 timm:resnet18@2 --threads 1 2 --plot times.png
"""),
}  # fmt: skip
