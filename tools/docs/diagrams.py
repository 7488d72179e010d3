"""Draw the diagrams of the pages into .github/images.

python tools/docs/diagrams.py [OUT]
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from torch import nn

matplotlib.use('svg')
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

import ghost_plugin as gp

IMAGES = Path(__file__).parents[2] / '.github' / 'images'
# The same bytes for the same drawing; text as outlines, so that all viewers show the same.
STYLE = {'svg.hashsalt': 'ghost_plugin', 'svg.fonttype': 'path', 'font.size': 11}
INPUT, OUTPUT, PRIMARY, GHOST = '#c9ced6', '#7d8590', '#5b8def', '#f5a742'
INK, FAINT = '#1f2328', '#59636e'


def canvas(width: int, height: int) -> Axes:
    """White axes in pixels of a page that is ``width`` pixels wide."""
    figure = plt.figure(figsize=(width / 72, height / 72), facecolor='white')
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis('off')
    return axes


def text(axes: Axes, x: float, y: float, words: str, **style) -> None:
    axes.text(x, y, words, **{'ha': 'center', 'va': 'center', 'color': INK, **style})


def arrow(axes: Axes, start: tuple, end: tuple, **style) -> None:
    style = {'arrowstyle': '-|>', 'color': INK, 'lw': 1.4, 'shrinkA': 0, 'shrinkB': 0, **style}
    axes.annotate('', end, start, arrowprops=style)


def feature_maps(axes: Axes, x: float, y: float, colors: list[str], label: str) -> None:
    """A stack of squares, the first in front, with its lower left corner at (x, y)."""
    for number, color in reversed(list(enumerate(colors))):
        axes.add_patch(Rectangle((x + 5 * number, y + 5 * number), 42, 42, fc=color, ec='white'))
    text(axes, x + 21 + 2.5 * len(colors), y - 15, label)


def ghost_conv(axes: Axes) -> None:
    """A conv above, its Ghost below, with shapes and shares of the multiply-adds."""
    image = torch.randn(1, 64, 56, 56)
    dense = gp.count(nn.Conv2d(64, 128, 3, padding=1, bias=False), image).macs
    ghost = gp.GhostConv2d(64, 128, 3, padding=1, bias=False, ratio=2)
    shares = {row.name: row.macs / dense for row in gp.count(ghost, image).rows}
    total, primary, cheap = (
        f'{100 * share:.1f} %'
        for share in (sum(shares.values()), shares['primary_conv'], shares['cheap_operation'])
    )
    text(axes, 12, 338, 'Ordinary conv', ha='left', weight='bold', size=12)
    feature_maps(axes, 20, 262, [INPUT] * 4, '64 x 56 x 56')
    arrow(axes, (90, 290), (590, 290))
    text(axes, 340, 303, 'conv 3 x 3, 64 to 128 channels')
    text(axes, 340, 275, f'{dense / 1e6:.0f} M multiply-adds = 100 %', color=FAINT)
    feature_maps(axes, 600, 262, [OUTPUT] * 8, '128 x 56 x 56')
    axes.plot([12, 688], [226, 226], color='#d1d9e0', lw=1)

    text(
        axes,
        12,
        208,
        f'Ghost conv, ratio 2: {total} of the multiply-adds',
        ha='left',
        weight='bold',
        size=12,
    )
    feature_maps(axes, 20, 122, [INPUT] * 4, '64 x 56 x 56')
    arrow(axes, (90, 150), (206, 150))
    text(axes, 148, 169, 'primary conv\n3 x 3')
    text(axes, 148, 137, primary, color=FAINT)
    feature_maps(axes, 215, 122, [PRIMARY] * 4, '64 primary')
    arrow(axes, (285, 150), (430, 150))
    arrow(axes, (246, 96), (306, 54), connectionstyle='angle,angleA=-90,angleB=180,rad=6')
    text(axes, 236, 66, 'cheap operation: one', ha='right')
    text(axes, 236, 50, 'depthwise 3 x 3 filter', ha='right')
    text(axes, 236, 34, 'per ghost channel', ha='right')
    text(axes, 272, 42, cheap, color=FAINT)
    feature_maps(axes, 315, 30, [GHOST] * 4, '64 ghosts')
    arrow(axes, (385, 54), (466, 96), connectionstyle='angle,angleA=0,angleB=90,rad=6')
    text(axes, 470, 66, 'concatenate', ha='left')
    feature_maps(axes, 438, 122, [PRIMARY] * 4 + [GHOST] * 4, '')
    text(axes, 466, 107, '64 + 64')
    arrow(axes, (530, 150), (590, 150), linestyle='dashed')
    text(axes, 562, 164, 'permute')
    feature_maps(axes, 600, 122, [PRIMARY, GHOST] * 4, '128 x 56 x 56')
    text(axes, 688, 44, 'Dashed: a converted conv may permute,', ha='right', size=10, color=FAINT)
    text(axes, 688, 28, 'so that channels keep their places', ha='right', size=10, color=FAINT)


def box(axes: Axes, x: float, y: float, title: str, words: str, color: str) -> None:
    """A box of 130 x 66 around (x, y)."""
    shape = FancyBboxPatch((x - 61, y - 29), 122, 58, 'round,pad=4', fc=color, ec='none')
    axes.add_patch(shape)
    text(axes, x, y + 14, title, weight='bold')
    text(axes, x, y - 12, words, size=10)


def step(axes: Axes, start: tuple, end: tuple, call: str, command: str) -> None:
    """An arrow with the call above it and the command below it."""
    arrow(axes, start, end)
    x, y = (start[0] + end[0]) / 2, start[1]
    text(axes, x, y + 12, call, family='monospace', weight='bold')
    text(axes, x, y - 13, command, size=10, color=FAINT)


def flow(axes: Axes) -> None:
    """From a model to a runtime."""
    for x, y, title, words, color in (
        (75, 230, 'trained model', 'and images\nof your task', '#e6e9ee'),
        (350, 230, 'plan', 'each conv: Ghost or\nkept, ratio, reason', '#dbe7ff'),
        (625, 230, 'converted model', 'Ghost convs with\nfitted weights', '#fdebd3'),
        (625, 62, 'tuned model', 'trained with the\noriginal as teacher', '#fdebd3'),
        (350, 62, 'fused model', 'norms folded,\nbranches merged', '#fdebd3'),
        (75, 62, 'runtime', 'ONNX, OpenVINO,\nTriton, AOTInductor', '#dff3e3'),
    ):
        box(axes, x, y, title, words, color)
    axes.plot([75, 75, 625], [267, 282, 282], color=INK, lw=1.4)
    arrow(axes, (625, 282), (625, 266))
    text(axes, 350, 294, 'gp.convert', family='monospace', weight='bold')
    step(axes, (144, 230), (280, 230), 'gp.plan', 'ghost-plugin plan')
    step(axes, (420, 230), (556, 230), 'plan.apply', 'ghost-plugin convert')
    text(axes, 350, 181, 'read: plan.report, plan.draw', color=FAINT, size=10)
    text(axes, 350, 166, 'edit: plan.replace_layer, plan.rebudget, JSON', color=FAINT, size=10)
    arrow(axes, (625, 193), (625, 99))
    text(axes, 615, 159, 'your training loop', ha='right')
    text(axes, 615, 144, 'with gp.Distiller', ha='right')
    text(axes, 615, 129, 'ghost-plugin finetune', ha='right', size=10, color=FAINT)
    step(axes, (556, 62), (420, 62), 'gp.fuse', 'returns a copy')
    step(axes, (280, 62), (144, 62), 'gp.export', 'ghost-plugin export')
    text(axes, 212, 104, 'gp.quantize', family='monospace', weight='bold')
    text(axes, 212, 89, 'gp.optimize', family='monospace', weight='bold')
    text(axes, 350, 10, 'export, quantize and optimize fuse by themselves', color=FAINT, size=10)


DIAGRAMS = {'ghost_conv': (ghost_conv, (700, 360)), 'flow': (flow, (700, 306))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', nargs='?', type=Path, default=IMAGES, help='folder (%(default)s)')
    out = parser.parse_args().out
    plt.rcParams.update(STYLE)
    for name, (draw, size) in DIAGRAMS.items():
        axes = canvas(*size)
        draw(axes)
        axes.figure.savefig(out / f'{name}.svg', metadata={'Date': None})
        print(out / f'{name}.svg')


if __name__ == '__main__':
    main()
