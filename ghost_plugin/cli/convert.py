"""The commands ``plan``, ``convert``, ``finetune``, ``evaluate`` and ``report``."""

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..conversion import ConversionPlan, apply_plan
from ..conversion.api import plan as make_plan
from ..conversion.layer_latency import LATENCY_BACKENDS
from ..conversion.restore import load_converted
from ..training import evaluation
from ..training.config import OPTIMIZERS, Recipe
from ..training.image_folder import ImageFolder, read_labels
from ..training.loader import Augmentation, Calibration, ImageLoader
from ..training.trainer import finetune
from ..utils.atomic_io import atomic_write, check_writable
from ..utils.checkpoint_io import save
from .errors import fail, quiet_workers
from .model_loading import LoadedModel, is_config
from .options import (
    Command,
    Parser,
    above,
    add_converted,
    add_model,
    add_normalization,
    amount,
    check_converted,
    device,
    group_size,
    load_model,
    milliseconds,
    ratio,
    whole,
)
from .terminal import Meter, figures, show

BUDGETS = ('macs', 'params', 'latency', 'max_divergence')
_CHOICES = ('ratio', 'dw_size', 'cheap', 'group_size', 'include', 'exclude', *BUDGETS)
_SWITCHES = ('no_keep_first', 'no_keep_last')
_TEACHER = ('label_weight', 'distill_weight', 'temperature', 'features')
WEIGHTS = ('.pth', '.pt', '.safetensors')


def _add_model(parser: Parser) -> None:
    add_model(parser)
    add = parser.add_argument
    add_normalization(parser)
    add('--seed', type=int, default=0, help='seed of everything random')
    add('--device', help='cuda if available, else cpu')
    add('--json', action='store_true', help='print JSON only')


def _add_choices(parser: Parser) -> None:
    """Add what ``gp.plan`` takes."""
    add = parser.add_argument
    add('--ratio', type=ratio, help='output channels per computed channel (2)')
    add('--dw-size', type=whole, help='size of the cheap kernels, odd (3, or by budget)')
    add('--cheap', choices=['depthwise', 'shift', 'linear'], help='cheap operation (depthwise)')
    add(
        '--group-size',
        type=group_size,
        help='primary channels that each ghost mixes, or all (1, or by budget)',
    )
    add('--include', nargs='+', metavar='P', help='convert only these: name, glob or re:...')
    add('--exclude', nargs='+', metavar='P', help='keep these: name, glob or re:...')
    add('--no-keep-first', action='store_true', help='the first conv may be converted, too')
    add('--no-keep-last', action='store_true', help='the last conv may be converted, too')
    add('--macs', type=amount, help='multiply-adds at most: share (0.6) or number (240M)')
    add('--params', type=amount, help='parameters at most: share or number')
    add('--latency', type=milliseconds, help='time at most: share or milliseconds (12ms)')
    add('--latency-backend', choices=list(LATENCY_BACKENDS), metavar='NAME',
        help='backend that is timed (eager)')  # fmt: skip
    add('--max-divergence', type=above, metavar='NATS',
        help="fewest multiply-adds with a divergence from the model's outputs below this, "
        'as measured on --data')  # fmt: skip
    parser.rename('--latency-by', '--latency-backend')


def _add_data(parser: Parser, text: str, split: str = 'val', required: bool = False) -> None:
    add = parser.add_argument
    add('--data', type=Path, required=required, metavar='DIR_OR_ZIP', help=text)
    add('--split', default=split, help='split folder, if any (%(default)s)')


def _add_images(parser: Parser, text: str, default: str) -> None:
    _add_data(parser, text, 'train')
    parser.add_argument(
        '--loader',
        choices=['train', 'val', 'test'],
        help='instead of --data, batches of this data loader of an OpenMMLab config',
    )
    parser.add_argument('--images', type=whole, help=f'number of images to use ({default})')
    parser.rename('--pictures', '--images')


def _add_labels(parser: Parser) -> None:
    text = 'index of each class by name; imagenet-1k for WordNet ids'
    parser.add_argument('--labels', type=Path, metavar='JSON', help=text)
    parser.add_argument('--batch', type=whole, default=128, help='batch size (%(default)s)')
    parser.add_argument('--workers', type=int, help='processes that decode large images')


def _check(args: argparse.Namespace, weights: bool = False) -> None:
    """Check everything that needs no model, and set device and seed.

    Args:
        args: The command line.
        weights: Weights are written to ``args.out``.
    """
    if 'out' in args:
        _check_out(args, weights)
    args.device = device(args.device)
    torch.manual_seed(args.seed)


def _check_out(args: argparse.Namespace, weights: bool) -> None:
    """Exit if the result would replace one of its inputs, or cannot be written under its name."""
    check_writable(args.out)
    written = {args.out.resolve(), args.out.with_suffix('.plan.json').resolve()}
    for name in ('plan', 'weights', 'checkpoint'):
        given = getattr(args, name, None)
        if given and given.resolve() in written:
            fail(f'{args.out} would replace {given}, which is read; give another --out')
    if weights and args.out.suffix not in WEIGHTS:
        fail(f'weights are written here, so --out ends in one of {WEIGHTS}; got {args.out}')
    args.out.parent.mkdir(parents=True, exist_ok=True)


def _load(args: argparse.Namespace) -> LoadedModel:
    """The model on its device, after one forward pass."""
    source = load_model(args)
    source.model.to(args.device)
    evaluation.costs(source.model, source.example())
    return source


def _calibration(
    args: argparse.Namespace, source: LoadedModel, number: int, meter: Meter
) -> dict[str, Any]:
    """The calibration images as an argument, if there are any."""
    if args.loader:
        from ..integrations.openmmlab.calibration import config_batches

        example = source.example()
        mode = example['mode'] if isinstance(example, dict) else 'tensor'
        images = args.images or number
        return {'calibration': config_batches(args.model, source.model, images, args.loader, mode)}
    if args.data is None:
        return {}
    images = ImageFolder(args.data, args.split).some(args.images or number, args.seed)
    loader = ImageLoader(images, source.preprocessing, device=args.device)
    return {'calibration': Calibration(loader, wrap=source.wrap, progress=meter)}


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name)}


def _plan(args: argparse.Namespace, source: LoadedModel, meter: Meter) -> ConversionPlan:
    options = _given(args, _CHOICES)
    if any(name in options for name in BUDGETS):
        options |= _calibration(args, source, 256, meter)
    if args.latency_backend is not None:
        options['latency_backend'] = args.latency_backend
    options['progress'] = meter.show
    options |= {'keep_first': not args.no_keep_first, 'keep_last': not args.no_keep_last}
    return make_plan(source.model, source.example(), seed=args.seed, **options)


def _show(args: argparse.Namespace, values: dict[str, Any], *lines: str) -> None:
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        show('\n'.join(lines))


def add_plan(parser: Parser) -> None:
    """Add the options of ``plan``."""
    _add_model(parser)
    add = parser.add_argument
    add('-o', '--out', type=Path, required=True, metavar='PLAN', help='JSON file to write')
    _add_choices(parser)
    _add_images(parser, 'images that a budget is scored on', '256')


def plan(args: argparse.Namespace) -> None:
    """Write a plan."""
    _check_scored(args)
    _check(args)
    source = _load(args)
    with Meter() as meter:
        made = _plan(args, source, meter)
    made.save(args.out)
    _show(args, made.as_dict(), made.report(), '', f'plan: {args.out}')


def _check_scored(args: argparse.Namespace) -> None:
    _check_loader(args)
    if (args.data or args.loader) and not _given(args, BUDGETS):
        fail(
            'only a budget is scored on the images of --data or --loader; give --macs, --params, '
            '--latency or --max-divergence, or leave the images out'
        )


def _check_loader(args: argparse.Namespace) -> None:
    """Exit if ``--loader`` is given without a config, or beside ``--data``."""
    if args.loader and args.data:
        fail('--loader takes the images of the config instead of those of --data; give one')
    if args.loader and not is_config(args.model):
        fail(f'--loader is for OpenMMLab configs, and {args.model} is none; give --data')


def add_convert(parser: Parser) -> None:
    """Add the options of ``convert``."""
    _add_model(parser)
    add = parser.add_argument
    add('plan', type=Path, nargs='?', help='a plan; made from the options below without it')
    add('-o', '--out', type=Path, required=True,
        help='weights to write (.pth, .safetensors), or for a config a config (.py); '
        'OUT.plan.json, too')  # fmt: skip
    _add_choices(parser)
    text = 'images for scores and weights, no labels needed; weights are fitted without, too'
    _add_images(parser, text, '1024 with a plan, 256 without')
    add(
        '--reconstruct',
        choices=['layer', 'block', 'network'],
        help='gradient steps towards the original',
    )
    add(
        '--steps',
        type=whole,
        metavar='N',
        help='gradient steps of each layer or block, and of the network',
    )


def convert(args: argparse.Namespace) -> None:
    """Write the weights of the converted model, or a config that trains it."""
    to_config = is_config(args.model) and args.out.suffix not in WEIGHTS
    _check_loader(args)
    for said in _conversion_errors(args, to_config):
        fail(said)
    _check(args, weights=not to_config)
    if to_config:
        from ..integrations.openmmlab.converted_config import check_files

        check_files(args.out, args.model, args.checkpoint)
    source = _load(args)
    with Meter() as meter:
        if args.plan:
            made, number = ConversionPlan.load(args.plan), 1024
        else:
            made, number = _plan(args, source, meter), 256
        made.check_conversions()  # before anything is written
        model = None
        if not to_config or args.checkpoint:
            options = _calibration(args, source, number, meter)
            options |= _given(args, ('reconstruct', 'steps'))
            result = apply_plan(made, source.model, progress=meter.show, **options)
            model, made = result.model, result.plan
    if to_config:
        _write_config(args, made, model)
    else:
        _write_weights(args, source, made, model)


def _conversion_errors(args: argparse.Namespace, to_config: bool) -> list[str]:
    found = []
    if args.plan and _given(args, (*_CHOICES, *_SWITCHES, 'latency_backend')):
        found.append('options that choose convs are for a new plan; leave them or the plan out')
    if args.steps and not args.reconstruct:
        found.append('--steps are those of --reconstruct layer, block or network; add it')
    if args.out.suffix == '.py' and not to_config:
        found.append(f'{args.model} is no OpenMMLab config; its weights end in {WEIGHTS}')
    if to_config and args.num_classes:
        found.append(
            'a config says its num_classes itself; make one that inherits it and convert that'
        )
    images = args.data or args.loader
    if to_config and not args.checkpoint and images and not _given(args, BUDGETS):
        found.append(
            '--data and --loader are for a budget (--macs) or the weights of a --checkpoint; '
            'add one'
        )
    return found


def _write_config(
    args: argparse.Namespace, made: ConversionPlan, model: torch.nn.Module | None
) -> None:
    from ..integrations.openmmlab.converted_config import write_converted

    files = write_converted(args.out, args.model, made, model)
    _show(args, made.as_dict(), made.report(), '', f'written: {", ".join(map(str, files))}')


def _write_weights(
    args: argparse.Namespace, source: LoadedModel, made: ConversionPlan, model: torch.nn.Module
) -> None:
    if source.fresh:
        note = f'note: {args.model} has random weights; give --checkpoint or --pretrained'
        print(note, file=sys.stderr)
    _save(model, args.out)
    kept = args.out.with_suffix('.plan.json')
    made.save(kept)
    nets = {'original': source.model, 'converted': model}
    costs = {name: evaluation.costs(net, source.example()) for name, net in nets.items()}
    rows = figures([{'model': name, **cost} for name, cost in costs.items()])
    where = f'weights: {args.out}, plan with errors: {kept}'
    _show(args, {**costs, 'plan': made.as_dict()}, made.report(), '', rows, '', where)


def _save(model: torch.nn.Module, path: Path) -> None:
    """Write the weights in the format that the suffix names."""
    if path.suffix != '.safetensors':
        save(model.state_dict(), path)
        return
    from safetensors.torch import save as to_bytes  # it comes with timm

    # Shared tensors are stored once each.
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with atomic_write(path) as partial_file:
        partial_file.write_bytes(to_bytes(tensors))


def add_finetune(parser: Parser) -> None:
    """Add the options of ``finetune``."""
    _add_model(parser)
    add = parser.add_argument
    add('plan', type=Path, nargs='?', help='a plan; the model itself is trained without it')
    add('--weights', type=Path, metavar='FILE', help='written by convert; needed with a plan')
    add('-o', '--out', type=Path, required=True, help='weights to write')
    _add_data(parser, 'training images', 'train', required=True)
    add('--val', type=Path, required=True, metavar='DIR_OR_ZIP', help='validation images')
    add('--val-split', default='val', help='split folder, if any (%(default)s)')
    _add_labels(parser)
    add('--epochs', type=above, default=1.5, help='may be a fraction (%(default)s)')
    add('--optimizer', choices=list(OPTIMIZERS), default='sgd', help='%(default)s without it')
    rates = ', '.join(f'{name} {rate:g}' for name, (rate, _) in OPTIMIZERS.items())
    add('--lr', type=above, help=f'highest learning rate ({rates})')
    add('--weight-decay', type=float, help='not for norms and biases')
    add('--accumulate', type=whole, default=1, metavar='N', help='batches per step')
    add('--label-weight', type=float, default=0.1, help='weight of the labels (%(default)s)')
    add('--distill-weight', type=float, default=0.9,
        help="weight of the teacher's logits (%(default)s)")  # fmt: skip
    add('--temperature', type=above, default=4.0, help='of the logits (%(default)s)')
    add('--features', nargs='+', default=(), metavar='NAME', help='modules to compare, too')
    add('--amp', action='store_true', help='mixed precision')
    add('--ema', type=float, default=0.0, metavar='DECAY', help='average the weights, 0.999')
    add('--no-flip', action='store_true', help='no mirrored images (digits)')
    add('--min-area', type=above, default=0.35, help='least share of a large image in a crop')
    add('--resume', action='store_true', help='continue an interrupted run')
    parser.rename('--hard', '--label-weight')
    parser.rename('--soft', '--distill-weight')


def tune(args: argparse.Namespace) -> None:
    """Train with the original as teacher or, without a plan, the original itself."""
    check_converted(args)
    _check(args, weights=True)
    quiet_workers()
    source = _load(args)
    model, teacher = source.model, None
    if args.plan:
        model, teacher = load_converted(source.model, args.plan, args.weights), source.model
    names = [field.name for field in dataclasses.fields(Recipe) if field.name in args]
    recipe = Recipe(**{name: getattr(args, name) for name in names})
    ignored = [name for name in _TEACHER if getattr(recipe, name) != getattr(Recipe(), name)]
    if ignored and teacher is None:
        said = ', '.join(f'--{name}'.replace('_', '-') for name in ignored)
        print(f'note: without a plan there is no teacher; {said} has no effect', file=sys.stderr)
    labels = read_labels(args.labels)
    train = ImageFolder(args.data, args.split, labels)
    val = ImageFolder(args.val, args.val_split, labels or train.classes)
    change = Augmentation(flip=not args.no_flip, min_area=args.min_area)
    options = {'device': args.device, 'workers': args.workers}
    loader = ImageLoader(train, source.preprocessing, change, **options)
    held = ImageLoader(val, source.preprocessing, **options)
    for one in (loader, held):
        evaluation.check_classes(model, one, mapped=labels is not None)
    with Meter() as meter:
        validate = partial(evaluation.top1, loader=held, batch=args.batch, progress=meter)
        state = args.out.with_name(f'{args.out.name}.state')
        before = validate(model)['top1'] if args.plan else None
        try:
            history = finetune(model, loader, recipe, teacher=teacher, state=state,
                               resume=args.resume, validate=validate, progress=meter)  # fmt: skip
        except KeyboardInterrupt:
            fail('interrupted, finished epochs are kept; the same command with --resume continues')
    _save(model, args.out)
    after = history[-1]['top1']
    if before is not None and after < before:
        print(
            f'warning: top-1 fell from {before:.2f} to {after:.2f} %: the learning rate is too '
            f'high for so few steps. Give a smaller --lr, more --epochs or a smaller --batch; '
            f'{args.weights} holds the weights from before',
            file=sys.stderr,
        )
    values = {'before': before, 'history': history, 'weights': str(args.out)}
    said = [] if before is None else [f'top-1 before: {before:.2f} %']
    _show(args, values, *said, figures(history), '', f'weights: {args.out}')


def add_evaluate(parser: Parser) -> None:
    """Add the options of ``evaluate``."""
    _add_model(parser)
    add_converted(parser)
    _add_data(parser, 'images in class folders; only costs without them')
    _add_labels(parser)


def evaluate(args: argparse.Namespace) -> None:
    """Measure a model."""
    check_converted(args)
    _check(args)
    quiet_workers()
    source = _load(args)
    model = load_converted(source.model, args.plan, args.weights) if args.plan else source.model
    found = {}
    if args.data:
        labels = read_labels(args.labels)
        images = ImageFolder(args.data, args.split, labels)
        options = {'device': args.device, 'workers': args.workers}
        loader = ImageLoader(images, source.preprocessing, **options)
        evaluation.check_classes(model, loader, mapped=labels is not None)
        with Meter() as meter:
            found = dataclasses.asdict(evaluation.accuracy(model, loader, args.batch, meter))
    found |= evaluation.costs_and_latency(model, source.example())
    _show(args, found, figures([found]), '', f'latency: {found["setup"]}')


def add_report(parser: Parser) -> None:
    """Add the options of ``report``."""
    parser.add_argument('plan', type=Path, help='written by plan or convert')
    parser.add_argument('--plot', type=Path, metavar='PNG', help='draw it')
    parser.add_argument('--json', action='store_true', help='print JSON only')
    parser.rename('--picture', '--plot')


def report(args: argparse.Namespace) -> None:
    """Show a plan, and draw it."""
    made = ConversionPlan.load(args.plan)
    if args.plot:
        made.draw(args.plot)
    _show(args, made.as_dict(), made.report())


COMMANDS = {
    'plan': Command(add_plan, plan, """
ghost-plugin plan timm:resnet18 --pretrained -o plan.json
ghost-plugin plan timm:resnet18 --macs 0.6 --data images -o plan.json
ghost-plugin plan nets.py:make_net --size 32 --exclude head --latency 0.7 -o plan.json
"""),
    'convert': Command(add_convert, convert, """
ghost-plugin convert timm:resnet18 plan.json --checkpoint mine.pth --data images -o converted.pth
ghost-plugin convert timm:resnet18 --macs 0.6 --pretrained -o converted.safetensors
ghost-plugin convert mmdet::retinanet/retinanet_r18_fpn_1x_coco.py --macs 0.6 -o converted.py
"""),
    'finetune': Command(add_finetune, tune, """
ghost-plugin finetune timm:resnet18 plan.json --checkpoint mine.pth --weights converted.pth \\
    --data images --val images -o tuned.pth
"""),
    'evaluate': Command(add_evaluate, evaluate, """
ghost-plugin evaluate timm:resnet18 --checkpoint mine.pth --data images
ghost-plugin evaluate timm:resnet18 --plan plan.json --weights tuned.pth --data images
"""),
    'report': Command(add_report, report, """
ghost-plugin report plan.json --plot plan.png
"""),
}  # fmt: skip
