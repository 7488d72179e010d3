#!/usr/bin/env python3
"""Milliseconds of GhostNets and of converted networks in several runtimes, timed in alternation.

``backbones`` times timm's GhostNets and ours. ``converted`` times networks and their conversions:
at ratio 2, at 60 % of the multiply-adds, and by a budget of time for the runtime. Plans are kept,
so an interrupted study goes on.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _results import record

import ghost_plugin as gp
from ghost_plugin.cli.benchmark import PAIRS, Measurement, Settings, load_variant, measure
from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.model_loading import LoadedModel
from ghost_plugin.cli.options import whole
from ghost_plugin.cli.terminal import show, table

BACKENDS = ('eager', 'channels-last', 'onnxruntime', 'openvino', 'openvino-bf16')
# Networks, and how many times as fast a budget of time shall make each in its better runtime.
NETWORKS = {
    'resnet18': 1.7, 'resnet50': 1.5, 'regnetx_032': 1.2, 'tf_efficientnet_lite0': 1.15,
    'mobilenetv2_100': 1.0,
}  # fmt: skip
RESERVE = 0.96  # budgets are by so much smaller
SHARES = (0.9, 0.95)  # budgets that are tried afterwards, if that was refused
RUNTIMES = ('onnxruntime', 'openvino')
MACS = 0.6
# As for a network that is deployed: all convs but the first may become Ghost convs.
SETTINGS: dict[str, Any] = {'keep_last': False}
SHARED = ('ratio 2',)  # also timed with share_permutations; a budget of time does so by itself


def backbones(batches: list[int], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Our GhostNets and timm's.

    Args:
        batches: Batch sizes.
        threads: Of every library.
        rounds: Timed rounds of each.

    Returns:
        Measurements as dictionaries, each with ``speedup`` over timm's network in eager mode.
    """
    rows = []
    for pair in PAIRS:
        settings = Settings(BACKENDS, batches, [threads], rounds=rounds)
        found = measure([f'timm:{name}' for name in pair], settings)
        for batch in batches:
            of_batch = [one for one in found if one.batch == batch]
            rows += _with_speedup(of_batch, _median(of_batch, f'timm:{pair[0]}', 'eager'))
    return rows


def converted(out: Path, threads: int, rounds: int, names: list[str]) -> list[dict[str, Any]]:
    """Networks and their conversions at batch 1, with fresh weights.

    Args:
        out: Folder of the plans.
        threads: Of every library.
        rounds: Timed rounds of each.
        names: Models of timm.

    Returns:
        Measurements as dictionaries, each with ``speedup`` over the original in the same backend,
        ``way`` and ``macs_share``.
    """
    rows = []
    for name in names:
        plain = f'timm:{name}'
        ways = {plain: ('original', 1.0)}
        for way, path in plans(name, out).items():
            totals = gp.ConversionPlan.load(path).totals
            share = totals['macs_after'] / totals['macs_before']
            ways[f'{plain}@{path}'] = way, share
            if way in SHARED:
                ways[f'{plain}@{path} shared'] = f'{way}, one permutation', share
        found = measure(list(ways), Settings(RUNTIMES, [1], [threads], rounds=rounds), load)
        for backend in RUNTIMES:
            of_backend = [one for one in found if one.backend == backend]
            for row in _with_speedup(of_backend, _median(of_backend, plain, backend)):
                way, share = ways[row['model']]
                rows.append({**row, 'model': name, 'way': way, 'macs_share': share})
    return rows


def plans(name: str, out: Path) -> dict[str, Path]:
    """Files of the plans of a network, with a budget of time for each runtime where one is met.

    Args:
        name: A model of timm.
        out: Folder of the files; those that are there are kept.
    """
    source = load_variant(f'timm:{name}')
    model, example = source.model.eval(), source.example()
    own = RESERVE / NETWORKS.get(name, 1.0)
    budgets: dict[str, list[dict[str, Any]]] = {
        'ratio 2': [{'ratio': 2}],
        'macs': [{'macs': MACS}],
        **{
            f'latency in {runtime}': [
                {'latency': share, 'latency_backend': runtime} for share in sorted({own, *SHARES})
            ]
            for runtime in RUNTIMES
        },
    }
    found = {}
    for way, tries in budgets.items():
        path = out / f'{name}-{way.replace(" ", "-")}.json'
        for options in tries:
            if not path.is_file():
                try:
                    gp.plan(model, example, **options, **SETTINGS).save(path)
                except ValueError as error:  # not reached; the message names the fastest plan
                    print(f'{name}, {options}: {error}', flush=True)
        if path.is_file():
            found[way] = path
    return found


def load(name: str, size: tuple[int, int] | None = None) -> LoadedModel:
    """As :func:`load_variant`, also with one permutation for convs whose outputs a shortcut adds.

    Args:
        name: A name, with ``' shared'`` behind for that.
        size: Of the images, (height, width).
    """
    plain, _, path = name.removesuffix(' shared').partition('@')
    if not name.endswith(' shared'):
        return load_variant(name, size)
    source = load_variant(plain, size)
    plan = gp.ConversionPlan.load(path)
    return replace(source, model=plan.apply(source.model, share_permutations=True).eval())


def _median(found: list[Measurement], model: str, backend: str) -> float | None:
    return next(one.median for one in found if (one.model, one.backend) == (model, backend))


def _with_speedup(found: list[Measurement], base: float | None) -> list[dict[str, Any]]:
    return [
        {**asdict(one), 'speedup': base / one.median if base and one.median else None}
        for one in found
    ]


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('part', choices=['backbones', 'converted'])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/study_runtimes'))
    parser.add_argument('--batch', type=whole, nargs='+', default=[1, 16], help='backbones (1 16)')
    parser.add_argument('--threads', type=whole, default=1, help='of every library (%(default)s)')
    parser.add_argument('--rounds', type=whole, default=20, help='timed rounds (%(default)s)')
    parser.add_argument('--networks', nargs='+', default=list(NETWORKS), help='names of timm')
    parser.add_argument('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == 'backbones':
        rows = backbones(args.batch, args.threads, args.rounds)
    else:
        rows = converted(args.out, args.threads, args.rounds, args.networks)
    show(table(
        ['Model', 'Conversion', 'Backend', 'Batch', 'ms', 'Times as fast'],
        [[row['model'], row.get('way', ''), row['backend'], str(row['batch']),
          f'{row["median"]:.2f}', f'{row["speedup"]:.2f}'] for row in rows if row['median']],
    ))  # fmt: skip
    if args.record:
        command = f'python tools/studies/runtimes.py {args.part} --threads {args.threads} --record'
        aims = ', '.join(f'{name} {aim:g}' for name, aim in NETWORKS.items())
        note = (
            f'Budgets of time ask for these speedups: {aims}; or, where that was refused, for a '
            f'share of {" or ".join(map(str, SHARES))}.'
        )
        record(f'runtimes_{args.part}', rows, command, note if args.part == 'converted' else '')


if __name__ == '__main__':
    main()
