#!/usr/bin/env python3
"""Milliseconds of GhostNets and of converted networks in several runtimes, timed in alternation.

``backbones`` times timm's GhostNets and ours. ``converted`` times networks and their conversions:
at ratio 2, at 60 % of the multiply-adds, and by a budget of time for the runtime.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _results import record

import ghost_plugin as gp
from ghost_plugin.cli.benchmark import PAIRS, Measurement, Settings, load_variant, measure
from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.options import whole
from ghost_plugin.cli.terminal import show, table

BACKENDS = ('eager', 'channels-last', 'onnxruntime', 'openvino', 'openvino-bf16')
# Networks and the budgets of time that are tried in turn until one is met.
NETWORKS = ('resnet18', 'resnet50', 'regnetx_032', 'tf_efficientnet_lite0', 'mobilenetv2_100')
SHARES = (0.65, 0.8, 0.9, 0.95)
RUNTIMES = ('onnxruntime', 'openvino')
MACS = 0.6
# As for a network that is deployed: all convs but the first may become Ghost convs.
SETTINGS: dict[str, Any] = {'keep_last': False}


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
        for way, plan in plans(name):
            path = out / f'{name}-{way.replace(" ", "-")}.json'
            plan.save(path)
            ways[f'{plain}@{path}'] = way, plan.totals['macs_after'] / plan.totals['macs_before']
        found = measure(list(ways), Settings(RUNTIMES, [1], [threads], rounds=rounds))
        for backend in RUNTIMES:
            of_backend = [one for one in found if one.backend == backend]
            for row in _with_speedup(of_backend, _median(of_backend, plain, backend)):
                way, share = ways[row['model']]
                rows.append({**row, 'model': name, 'way': way, 'macs_share': share})
    return rows


def plans(name: str) -> list[tuple[str, gp.ConversionPlan]]:
    """Plans of a network, with a budget of time for each runtime where one is met."""
    source = load_variant(f'timm:{name}')
    model, example = source.model.eval(), source.example()
    found = [
        ('ratio 2', gp.plan(model, example, ratio=2, **SETTINGS)),
        ('macs', gp.plan(model, example, macs=MACS, **SETTINGS)),
    ]
    for runtime in RUNTIMES:
        for share in SHARES:
            try:
                plan = gp.plan(model, example, latency=share, latency_backend=runtime, **SETTINGS)
            except ValueError as error:  # not reached; the message names the fastest plan
                print(f'{name}, {runtime}, latency={share}: {error}', flush=True)
                continue
            found.append((f'latency in {runtime}', plan))
            break
    return found


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
        record(f'runtimes_{args.part}', rows, command)


if __name__ == '__main__':
    main()
