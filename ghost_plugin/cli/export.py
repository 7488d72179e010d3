"""The commands ``export`` and ``optimize``."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..conversion.restore import load_converted
from ..deploy import ExportReport, ImageInput
from ..deploy import export as export_model
from ..deploy import optimize as optimize_model
from ..deploy.backends import BACKENDS
from ..deploy.optimizing import TOLERANCES
from ..deploy.profiles import PROFILES
from ..training.image_folder import ImageFolder
from ..training.loader import Calibration, ImageLoader
from ..training.preprocessing import Preprocessing
from ..utils.modules import call_model
from .errors import fail, one_line
from .options import (
    Command,
    Parser,
    above,
    add_converted,
    add_model,
    add_normalization,
    check_converted,
    device,
    load_model,
    whole,
)
from .terminal import show, table

SPLIT: dict[str, bool | str] = {'auto': 'auto', 'yes': True, 'no': False}
DYNAMIC: dict[str, bool | str] = {'all': True, 'batch': 'batch', 'none': False}
LAYOUTS = {'NCHW': False, 'NHWC': True}  # True for channels last


def add_export(parser: Parser) -> None:
    """Add the options of ``export``."""
    add_model(parser)
    add_converted(parser)
    add = parser.add_argument
    add('-o', '--out', type=Path, required=True, help='ends in .onnx, .xml, .pt, .pt2, '
        '.ncnn.param, .tflite or .pte')  # fmt: skip
    add('--dynamic', choices=list(DYNAMIC), default='all', help='axes of any size, where the '
        'format holds them (%(default)s)')  # fmt: skip
    add('--opset', type=int, default=17, help='of ONNX (%(default)s)')
    add('--profile', choices=list(PROFILES), help='ONNX for an older compiler, of fixed size')
    add('--exporter', default='auto', help='auto, trace or dynamo')
    add('--aot', action='store_true', help='compile a .pt2 file with AOTInductor')
    add('--split-concat', nargs='?', choices=list(SPLIT), const='yes', default='no',
        help='eliminate concatenations of Ghost layers (onnx, xml; %(default)s)')  # fmt: skip
    add('--indexed', action='store_true', help='channel permutations by indexing: faster in ONNX '
        'Runtime, misread by the converter of ncnn')  # fmt: skip
    add('--tolerance', type=above, default=1e-4, help='share of the largest output (%(default)s)')
    add('--input-names', nargs='+', metavar='NAME', help='one per tensor (onnx, xml)')
    add('--output-names', nargs='+', metavar='NAME', help='one per tensor (onnx, xml)')
    add('--uint8', nargs='?', choices=list(LAYOUTS), const='NCHW', help='the file takes RGB images '
        'of this layout in uint8 (ncnn: float32) and normalizes them (NCHW)')  # fmt: skip
    add_normalization(parser)
    add('--json', action='store_true', help='print JSON only')
    parser.rename('--free', '--dynamic')
    parser.rename('--split', '--split-concat=yes')  # a switch, so no value follows


def export(args: argparse.Namespace) -> None:
    """Write a file for another runtime, after a comparison with PyTorch."""
    check_converted(args)
    if not args.uint8 and (args.mean or args.std):
        fail('--mean and --std go with --uint8; without it the file takes normalized images')
    source = load_model(args)
    model = load_converted(source.model, args.plan, args.weights) if args.plan else source.model
    example, preprocessing = source.example(), source.preprocessing
    _check_size(model, example, preprocessing.size)
    found = export_model(
        model,
        example,
        args.out,
        aot=args.aot,
        dynamic=DYNAMIC[args.dynamic],
        opset=args.opset,
        profile=args.profile,
        exporter=args.exporter,
        split_concat=SPLIT[args.split_concat],
        portable=not args.indexed,
        tolerance=args.tolerance,
        input_names=args.input_names,
        output_names=args.output_names,
        image_input=_image_input(args, preprocessing),
    )
    show(json.dumps(found.as_dict(), indent=1) if args.json else _table(found))


def _image_input(args: argparse.Namespace, preprocessing: Preprocessing) -> ImageInput | None:
    if not args.uint8:
        return None
    return ImageInput(
        preprocessing.mean,
        preprocessing.std,
        channels_last=LAYOUTS[args.uint8],
        reversed_channels=preprocessing.bgr,
    )


def _check_size(model: nn.Module, example: Any, size: tuple[int, int]) -> None:
    try:
        with torch.no_grad():
            call_model(model, example)
    except RuntimeError as error:
        raise ValueError(
            f'the model does not take images of {size[0]} x {size[1]} pixels ({one_line(error)}); '
            f'give another --size, such as a multiple of 32'
        ) from error


def _table(found: ExportReport) -> str:
    shapes = ', '.join('x'.join(map(str, shape)) for shape in found.checked)
    free = '; '.join(
        f'{name}: {", ".join(axes.values()) or "nothing"}' for name, axes in found.free.items()
    )
    return table(
        ['File', 'Format', 'Exporter', 'MB', 'Largest difference', 'of the largest value',
         'Dynamic', 'Tried'],
        [[str(found.path), found.format, found.exporter, f'{found.size / 1e6:.2f}',
          f'{found.max_abs_diff:.1e}', f'{found.max_rel_diff:.1e}', free, shapes]],
    )  # fmt: skip


def add_optimize(parser: Parser) -> None:
    """Add the options of ``optimize``."""
    add_model(parser)
    add_converted(parser)
    add = parser.add_argument
    add('--backend', choices=['auto', *BACKENDS], default='auto', metavar='NAME',
        help='only this one, besides eager')  # fmt: skip
    add('--dtypes', nargs='+', choices=list(TOLERANCES), default=['float32'],
        help='dtypes to compute in (%(default)s)')  # fmt: skip
    add('--batch', type=whole, default=1, help='batch size (%(default)s)')
    add('--data', type=Path, metavar='DIR_OR_ZIP', help='calibration images for int8')
    add('--images', type=whole, default=128, help='number of them (%(default)s)')
    add('--rounds', type=whole, default=20, help='timed rounds (%(default)s)')
    add('--threads', type=whole, default=torch.get_num_threads(), help='all cores without')
    add('--device', help='cuda if available, else cpu')
    add('--json', action='store_true', help='print JSON only')


def optimize(args: argparse.Namespace) -> None:
    """Time all backends that compute the same, and name the fastest."""
    check_converted(args)
    where = device(args.device)
    source = load_model(args)
    model = load_converted(source.model, args.plan, args.weights) if args.plan else source.model
    model.to(where)
    torch.set_num_threads(args.threads)
    batches = None
    if args.data:
        images = ImageFolder(args.data, 'train').some(args.images, 0)
        loader = ImageLoader(images, source.preprocessing, device=where)
        batches = Calibration(loader, args.batch, wrap=source.wrap)
    noise = torch.randn(args.batch, 3, *source.preprocessing.size, device=where)
    report = optimize_model(
        model,
        source.wrap(noise),
        args.backend,
        dtypes=args.dtypes,
        calibration=batches,
        rounds=args.rounds,
    ).report
    said = f'{report.table()}\n\nfastest: {report.chosen}, {report.threads} threads'
    show(json.dumps(report.as_dict(), indent=1) if args.json else said)


COMMANDS = {
    'export': Command(add_export, export, """
ghost-plugin export timm:ghostnet_plugin -o ghostnet.onnx
ghost-plugin export timm:ghostnet_plugin -o ghostnet.pt2 --aot --dynamic batch
ghost-plugin export timm:ghostnet_plugin -o ghostnet.tflite --size 192 --uint8 NHWC
ghost-plugin export timm:ghostnet_plugin -o ghostnet.onnx --profile rknn
ghost-plugin export timm:resnet18 --plan plan.json --weights converted.pth -o resnet18.xml
ghost-plugin export configs/detection/retinanet_ghostnet-110_fpn_1x_coco.py -o d.onnx --size 320 480
"""),
    'optimize': Command(add_optimize, optimize, """
ghost-plugin optimize timm:ghostnet_plugin --batch 16
ghost-plugin optimize timm:resnet18 --checkpoint mine.pth --dtypes float32 int8 --data images
"""),
}  # fmt: skip
