#!/usr/bin/env python3
"""Draw the figures of measured results: accuracy against multiply-adds, latency by runtime.

A figure holds a checksum of the values that it shows, so a test sees when it is old.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import results
import timm
import torch
from _results import lite0_top1
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tables import model_title

import ghost_plugin as gp
from ghost_plugin.utils.atomic_io import atomic_write
from ghost_plugin.weights import PUBLISHED

FOLDER = Path(__file__).parents[2] / '.github/images'
# Networks of timm beside ours: name, title, top-1 on ImageNet by timm's results-imagenet.csv.
PEERS = (
    ('mobilenetv2_100.ra_in1k', 'MobileNetV2', 72.910),
    ('mobilenetv4_conv_small.e2400_r224_in1k', 'MobileNetV4-S', 73.756),
    ('mobilenetv3_large_100.ra_in1k', 'MobileNetV3-L', 75.784),
    ('efficientnet_lite0.ra_in1k', 'EfficientNet-Lite0', 75.488),
)
OURS, OTHERS = 'tab:blue', 'tab:gray'


def published() -> list[tuple[str, str, float, float]]:
    """Group, title, multiply-adds in millions and top-1 of published ImageNet weights."""
    image = torch.zeros(1, 3, 224, 224)

    def macs(name: str) -> float:
        return gp.count(gp.fuse(timm.create_model(name).eval()), image).macs / 1e6

    ours = [
        (model_title(name).split()[0], model_title(name), macs(name), row.top1)
        for name, row in PUBLISHED.items()
        if 'gghost' not in name
    ]
    return ours + [('others', title, macs(name.split('.')[0]), top1) for name, title, top1 in PEERS]


def converted() -> dict[str, list[tuple[float, float]]]:
    """Share of the multiply-adds and points of top-1 lost, by network, without labels."""
    rows = results.load()['efficientnet_lite0']['rows']
    shares = {row['macs_share'] for row in rows if row['way'] == 'images'}
    curve = [(1.0, 0.0)]
    for share in sorted(shares, reverse=True):
        before, after = lite0_top1(share)
        curve.append((share, before - after))
    return {'EfficientNet-Lite0, ImageNet': curve}


def latencies() -> list[tuple[str, str, str, float]]:
    """Network, conversion, backend and how many times as fast as the original."""
    rows = results.load().get('runtimes_converted', {}).get('rows', [])
    return [
        (row['model'], row['way'], row['backend'], row['speedup'])
        for row in rows
        if row['speedup'] and row['way'] in ('original', 'ratio 2', 'macs', _own_budget(row))
    ]


def networks() -> list[dict[str, Any]]:
    """Networks with top-1 and milliseconds by runtime, one thread."""
    rows = results.load().get('accuracy_latency', {}).get('rows', [])
    return [row for row in rows if row['threads'] == 1]


def _own_budget(row: dict[str, Any]) -> str:
    return f'latency in {row["backend"]}'


def draw_accuracy(figure: Figure, values: Sequence[Any]) -> None:
    """Draw published networks on the left, converted ones on the right.

    Args:
        figure: An empty figure.
        values: Of :func:`published` and :func:`converted`.
    """
    points, curves = values
    left, right = figure.subplots(1, 2)
    for group in dict.fromkeys(point[0] for point in points):
        chosen = sorted(point[1:] for point in points if point[0] == group)
        chosen.sort(key=lambda point: point[1])
        style = {'color': OTHERS, 'linestyle': ''} if group == 'others' else {}
        left.plot(
            *zip(*(point[1:] for point in chosen), strict=True), marker='o', label=group, **style
        )
        for title, x, y in chosen:
            text = title if group == 'others' else title.split()[-1]
            left.annotate(text, (x, y), xytext=(4, -11), textcoords='offset points', fontsize=7)
    left.margins(0.15)
    _label(left, 'ImageNet, published weights', 'multiply-adds (M)', 'top-1 (%)')
    for name, curve in curves.items():
        right.plot([100 * x for x, _ in curve], [y for _, y in curve], marker='o', label=name)
    right.invert_xaxis()
    right.invert_yaxis()
    _label(right, 'Converted without labels', 'multiply-adds kept (%)', 'points of top-1 lost')


def draw_latency(figure: Figure, values: Sequence[Any]) -> None:
    """Draw bars of converted networks, one group a network, one panel a runtime.

    Args:
        figure: An empty figure.
        values: Of :func:`latencies`.
    """
    backends = list(dict.fromkeys(row[2] for row in values))
    panels = figure.subplots(1, max(1, len(backends)), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(row[0] for row in values))
    panels[0].invert_yaxis()  # shared by all
    for axes, backend in zip(panels, backends, strict=True):
        ways = ('ratio 2', 'macs', f'latency in {backend}')
        titles = ('ratio=2', 'macs=0.6', 'latency=')
        for place, (way, title) in enumerate(zip(ways, titles, strict=True)):
            found = {row[0]: row[3] for row in values if row[1:3] == [way, backend]}
            axes.barh(
                [names.index(name) + 0.27 * (place - 1) for name in found],
                list(found.values()),
                height=0.25,
                label=title,
            )
        axes.axvline(1, color='black', linewidth=1)
        axes.set_yticks(range(len(names)), names)
        _label(axes, backend, 'times as fast as the original, batch 1', '')


def draw_networks(figure: Figure, values: Sequence[Any]) -> None:
    """Draw accuracy against milliseconds, one panel a runtime, the front as a line.

    Args:
        figure: An empty figure.
        values: Of :func:`networks`.
    """
    runtimes = [name for name in results.RUNTIMES if any(name in row for row in values)]
    panels = figure.subplots(-(-len(runtimes) // 2), 2, squeeze=False).flatten()
    colours = {'ours': OURS, 'converted': 'tab:orange', 'others': OTHERS}
    for axes, runtime in zip(panels, runtimes, strict=False):
        rows = sorted((row for row in values if runtime in row), key=lambda row: row['top1'])
        best = results.front(rows, runtime)
        axes.plot(
            [row[runtime] for row in best], [row['top1'] for row in best], color='black', lw=0.8
        )
        # Names stand in a column beside the panel, because many points lie close together.
        bottom, top = rows[0]['top1'] - 0.5, rows[-1]['top1'] + 0.5
        for place, row in enumerate(rows):
            point, colour = (row[runtime], row['top1']), colours[row['kind']]
            axes.plot(*point, 'o', color=colour, markersize=4)
            height = (place + 0.5) / len(rows)
            axes.annotate(
                row['model'], point, xytext=(1.05, height), textcoords='axes fraction',
                fontsize=6.5, color=colour, va='center',
                arrowprops={'arrowstyle': '-', 'color': colour, 'lw': 0.3},
            )  # fmt: skip
        axes.set_ylim(bottom, top)
        axes.set_title(runtime, fontsize=10)
        axes.set_xlabel('milliseconds, batch 1, 1 thread')
        axes.set_ylabel('top-1 (%)')
        axes.grid(alpha=0.3)
    for axes in panels[len(runtimes) :]:
        axes.remove()


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc='upper left' if title.startswith('ImageNet') else 'best')


# Name of the file: what it shows, how it is drawn, height in inches.
FIGURES: dict[str, tuple[Callable[[], Any], Callable[[Figure, Any], None], float]] = {
    'accuracy.png': (lambda: [published(), converted()], draw_accuracy, 3.6),
    'latency.png': (latencies, draw_latency, 3.6),
    'networks.png': (networks, draw_networks, 12),
}


def plain(values: Any) -> Any:
    """Values as JSON holds them."""
    return json.loads(json.dumps(values))


def checksum(values: Any) -> str:
    """Checksum of values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def is_current(name: str) -> bool:
    """Return whether a figure shows the values of today.

    Args:
        name: A key of ``FIGURES``.
    """
    path = FOLDER / name
    if not path.is_file():
        return False
    with Image.open(path) as image:
        return image.info.get('Description') == checksum(plain(FIGURES[name][0]()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', default=list(FIGURES), help='all without')
    for name in parser.parse_args().names:
        collect, draw, height = FIGURES[name]
        values = plain(collect())
        figure = Figure(figsize=(9, height), layout='constrained', facecolor='white')
        draw(figure, values)
        with atomic_write(FOLDER / name) as partial_file:
            metadata = {'Description': checksum(values)}
            figure.savefig(partial_file, format='png', dpi=110, metadata=metadata)
        print(FOLDER / name)


if __name__ == '__main__':
    main()
