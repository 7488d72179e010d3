#!/usr/bin/env python3
"""Write a model as ONNX, OpenVINO IR, TorchScript or torch.export, compared with PyTorch first.

export.py timm:ghostnet_plugin -o ghostnet.onnx
export.py timm:resnet18 --plan plan.json --weights converted.pth -o resnet18.xml
export.py configs/detection/retinanet_ghostnet-110_fpn_1x_coco.py -o detector.onnx --size 320 480
"""

import json
from pathlib import Path

import ghost_plugin as gp
from ghost_plugin.cli import model_loading
from ghost_plugin.cli.errors import fail, tool
from ghost_plugin.cli.options import Parser, above, whole
from ghost_plugin.cli.terminal import show, table
from ghost_plugin.conversion.restore import converted

FREE = {'all': True, 'batch': 'batch', 'none': False}


@tool
def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('model', help=model_loading.FORMS)
    add('-o', '--out', type=Path, required=True, help='ends in .onnx, .xml, .pt or .pt2')
    add('--checkpoint', type=Path, metavar='FILE', help='weights of the model')
    add('--pretrained', action='store_true', help='published weights of timm or torchvision')
    add('--num-classes', type=whole, metavar='N', help='outputs of its classifier')
    add('--plan', type=Path, help='plan of a converted model; --weights, too')
    add('--weights', type=Path, metavar='FILE', help='of the converted model')
    add('--size', type=whole, nargs='+', metavar='PX', help='side, or height and width')
    add('--free', choices=list(FREE), default='all', help='axes of any size (%(default)s)')
    add('--opset', type=int, default=17, help='of ONNX (%(default)s)')
    add('--exporter', default='auto', help='auto, trace or dynamo')
    add('--split', action='store_true', help='halves of Ghost layers stay apart (onnx, xml)')
    add('--indexed', action='store_true', help='channel permutations by indexing: faster in ONNX '
        'Runtime, misread by the converter of ncnn')  # fmt: skip
    add('--tolerance', type=above, default=1e-4, help='share of the largest output (%(default)s)')
    add('--input-names', nargs='+', metavar='NAME', help='of the file, one per tensor (onnx, xml)')
    add('--output-names', nargs='+', metavar='NAME', help='of the file, one per tensor (onnx, xml)')
    add('--json', action='store_true', help='print JSON only')
    args = parser.parse_args()
    if bool(args.plan) != bool(args.weights):
        fail('--plan and --weights go together; without both it is the model itself')
    if args.size and len(args.size) > 2:
        fail(f'--size takes a side, or height and width, got {args.size}')
    source = model_loading.load(args.model, args.num_classes, args.checkpoint, args.pretrained)
    source = source.adjusted(args.size and tuple(args.size * 2)[:2])
    model = converted(source.model, args.plan, args.weights) if args.plan else source.model
    chosen = ('opset', 'exporter', 'split', 'tolerance', 'input_names', 'output_names')
    options = {name: getattr(args, name) for name in chosen}
    options['portable'] = not args.indexed
    found = gp.export(model, source.example(), args.out, dynamic=FREE[args.free], **options)
    show(json.dumps(found.as_dict(), indent=1) if args.json else text(found))


def text(found: gp.ExportReport) -> str:
    """The report as a table."""
    shapes = ', '.join('x'.join(map(str, shape)) for shape in found.checked)
    free = '; '.join(
        f'{name}: {", ".join(axes.values()) or "nothing"}' for name, axes in found.free.items()
    )
    return table(
        ['File', 'Format', 'Exporter', 'MB', 'Largest difference', 'of the largest value', 'Free',
         'Tried'],
        [[str(found.path), found.format, found.exporter, f'{found.size / 1e6:.2f}',
          f'{found.max_abs_diff:.1e}', f'{found.max_rel_diff:.1e}', free, shapes]],
    )  # fmt: skip


if __name__ == '__main__':
    main()
