#!/usr/bin/env python3
"""Parity of exported files: the largest difference from PyTorch, by network and format.

Each network has random weights and norms with random statistics. A file is written for two image
sizes, or once where it takes other sizes; ``gp.export`` reads it back by its own runtime and
compares. A cell holds the largest difference of an output, relative to its largest value, or why
there is no file.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _results import record
from torch import nn

import ghost_plugin as gp
from ghost_plugin.cli.errors import needs, one_line, tool
from ghost_plugin.cli.terminal import show, table

needs('timm')

import timm

SIZES = ((64, 96), (128, 64))
# Suffix and options of each column.
COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    'ncnn': ('.ncnn.param', {}),
    'LiteRT': ('.tflite', {}),
    'ExecuTorch': ('.pte', {}),
    'ONNX opset 11': ('.onnx', {'opset': 11}),
    'ONNX opset 17': ('.onnx', {'opset': 17}),
    'OpenVINO': ('.xml', {}),
    'torch.export': ('.pt2', {'dynamic': 'batch'}),  # GhostNetV2 has no dynamic sizes there
}
FAMILIES = (
    'ghostnet_plugin_050',
    'ghostnet_plugin_v2_100',
    'ghostnet_plugin_v3_050',
    'ghostnet_plugin_rep_050',
    'ghostnet_plugin_gghost_032',
)
CONVERTED = ('resnet18', 'tf_efficientnet_lite0')
CONVERSIONS: dict[str, dict[str, Any]] = {
    'ratio 2': {},
    'ratio 3': {'ratio': 3},
    'group_size 4': {'group_size': 4},
    'group_size all': {'group_size': 'all'},
}


def family(name: str) -> nn.Module:
    """Build a network of timm in eval mode, with random statistics in its norms."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval()


def converted(name: str, options: dict[str, Any]) -> nn.Module:
    """Convert a network of timm.

    Args:
        name: Its name.
        options: Of ``gp.convert``.
    """
    return gp.convert(family(name), torch.randn(1, 3, 64, 64), **options)[0]


def unet() -> nn.Module:
    """Build a Unet of segmentation_models_pytorch with one of our encoders."""
    needs('segmentation_models_pytorch')
    import segmentation_models_pytorch

    torch.manual_seed(0)
    encoder = f'tu-{FAMILIES[0]}'
    return segmentation_models_pytorch.Unet(encoder, encoder_weights=None, classes=3).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda name=name: family(name) for name in FAMILIES},
    **{
        f'{name}, {way}': lambda name=name, options=options: converted(name, options)
        for name in CONVERTED
        for way, options in CONVERSIONS.items()
    },
    f'Unet of {FAMILIES[0]}': unet,
}


def parity(model: nn.Module, suffix: str, options: dict[str, Any]) -> float | str:
    """Export a network; return the largest relative difference, or why it cannot be exported.

    Args:
        model: In eval mode.
        suffix: Of the format.
        options: Of ``gp.export``.
    """
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            example = torch.randn(1, 3, *size)
            try:
                report = gp.export(model, example, Path(folder) / f'net{suffix}', **options)
            except (ImportError, ValueError) as error:
                return one_line(error).rpartition('nothing was written; ')[2]
            worst = max(worst, report.max_rel_diff)
            if len({shape[2:] for shape in report.checked}) > 1:
                break  # it takes other sizes, which were compared
    return worst


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--formats', nargs='+', choices=list(COLUMNS), default=list(COLUMNS), metavar='NAME')
    add('--networks', nargs='+', choices=list(NETWORKS), default=list(NETWORKS), metavar='NAME')
    add('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.networks:
        model = NETWORKS[name]()
        rows.append({'model': name, **{key: parity(model, *COLUMNS[key]) for key in args.formats}})
        print(rows[-1], flush=True)
    show(
        table(['Model', *args.formats], [[_cell(value) for value in row.values()] for row in rows])
    )
    if args.record:
        sizes = ' and '.join(f'{height} x {width}' for height, width in SIZES)
        note = f'Batch 1, {sizes} pixels; files that take other sizes are compared at three more.'
        record('export_parity', rows, 'python tools/studies/export_parity.py --record', note)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f'{value:.0e}'


if __name__ == '__main__':
    main()
