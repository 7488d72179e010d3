#!/usr/bin/env python3
"""GhostNet into MMDetection's RetinaNet and into a classifier, trained on digits and shown."""

import argparse
import json
import platform
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from pathlib import Path
from typing import Any

import report_page
import torch
from _results import record
from _tasks import TOOLS, Task, run, train
from convert_digits import SIZE

import ghost_plugin as gp
from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.terminal import table
from ghost_plugin.integrations.openmmlab.plots import draw_curves, draw_detections
from ghost_plugin.training.evaluation import device_name

CLASSIFIER = Path('configs/classification/ghostnet-050_digits.py')
RETINANET = 'models/retinanet_small.py'
PARTS = ('datasets/digits_detection.py', 'schedules/adamw.py', 'runtime_detection.py')
AP, TOP1 = 'AP {:.3f}', 'top-1 {:.1f} %'


def arguments(out: Path) -> list[object]:
    """Arguments of ``swap_backbone.py`` that write the config ``out``."""
    source, *parts = [f'configs/_base_/{part}' for part in (RETINANET, *PARTS)]
    return [source, '--width', 0.5, '--with', *parts, '-o', out]


def converted(out: Path) -> list[str]:
    """timm's ResNet-18 converted by :file:`convert_digits.py`; its table."""
    done = out / 'table.md'
    if not done.is_file():
        run(out / 'log.txt', TOOLS / 'studies/convert_digits.py', 'data/digits/classification', out)
    return done.read_text().splitlines()


def results_table(results: dict[Task, dict], tuned: dict[str, Any], weights: Path) -> str:
    """All tasks as a Markdown table, and their checkpoints below.

    Args:
        results: Figures of the trained tasks.
        tuned: Figures of the converted network.
        weights: Its file.
    """
    rows, files = [], []
    for task, result in results.items():
        minutes, seconds = divmod(int(result['seconds']), 60)
        rows.append([
            task.name, task.model, f'{result["params"] / 1e6:.3f}',
            f'{result["macs"] / 1e6:.1f} at {task.size} px', task.score.format(result['metric']),
            f'{minutes}:{seconds:02d}',
        ])  # fmt: skip
        files.append(f'checkpoint of the {task.name}: {short(Path(result["checkpoint"]))}')
    rows.append([
        'conversion', 'ResNet-18, fine-tuned', f'{tuned["params"] / 1e6:.3f}',
        f'{tuned["macs"] / 1e6:.1f} at {SIZE} px', TOP1.format(tuned['top1']), '',
    ])  # fmt: skip
    head = ['Task', 'Model', 'Params (M)', 'MACs (M)', 'Metric', 'Training time']
    return '\n'.join([table(head, rows), '', *files, f'weights of the conversion: {weights}'])


def highlights(results: dict[Task, dict], conversion: list[dict]) -> list[tuple[str, str]]:
    """The main figures, each with what it is."""
    figures = [
        (task.score.format(result['metric']), f'{task.model}: {result["macs"] / 1e6:.1f} M '
         f'multiply-adds, {result["params"] / 1e6:.2f} M parameters')
        for task, result in results.items()
    ]  # fmt: skip
    original, _, tuned = conversion
    share = f'{100 * tuned["macs"] / original["macs"]:.0f} %'
    meaning = (
        "of ResNet-18's multiply-adds, converted and fine-tuned: "
        f'{TOP1.format(tuned["top1"])}, before {original["top1"]:.1f} %'
    )
    return [*figures, (share, meaning)]


def short(path: Path) -> Path:
    """A path from the working directory, if the file lies below it."""
    path, here = path.absolute(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def report(results: dict[Task, dict], conversion: list[str], out: Path) -> None:
    """Draw the images, write the tables and the page, and print where they lie.

    Args:
        results: Figures of the trained tasks, the detector first.
        conversion: Table of the conversion.
        out: Folder of the run.
    """
    detector = next(iter(results))
    checkpoint = short(Path(results[detector]['checkpoint']))
    curves = {task.name: out / f'curves_{task.name}.png' for task in results}
    with (out / 'images.log').open('w') as log, redirect_stdout(log), redirect_stderr(log):
        draw_detections(detector.config, checkpoint, out / 'detections.png')
        for task in results:
            draw_curves({task.name: (out / task.name, task.metric)}, curves[task.name])
    rows = json.loads((out / 'conversion/result.json').read_text())
    trained = results_table(results, rows[-1], out / 'conversion/converted.pth')
    text = '\n'.join([trained, '', "timm's ResNet-18 on the digits, converted:", '', *conversion])
    (out / 'table.md').write_text(f'{text}\n')
    activate = Path(sys.prefix, 'bin/activate')
    plan = out / 'conversion/plan.json'
    page = out / 'index.html'
    report_page.write(
        report_page.Report(
            highlights=highlights(results, rows),
            results=trained,
            conversion='\n'.join(conversion),
            plan=gp.ConversionPlan.load(plan).report(),
            detections=out / 'detections.png',
            curves=curves,
            plan_image=plan.with_suffix('.png'),
            paths={
                'activate': short(activate) if activate.is_file() else None,
                'config': detector.config,
                'checkpoint': checkpoint,
                'plan': plan,
            },
            made=f'Made on {date.today()} with ghost_plugin {gp.__version__}, torch '
            f'{torch.__version__}, Python {platform.python_version()}, {device_name("cpu")}.',
        ),
        page,
    )
    print(f'\n{text}\n\nimages, logs and this table: {out}')
    print(f'all results on one page, for a browser: {page}')


def record_all(results: dict[Task, dict], conversion: list[str], out: Path) -> None:
    """Store the figures of all tasks in the file of results.

    Args:
        results: Figures of the trained tasks.
        conversion: Table of the conversion, with notes behind it.
        out: Folder of the run.
    """
    command = 'bash tools/quickstart.sh --fresh --record'
    rows = [
        {'task': task.name, 'model': task.model, 'size': task.size, **result,
         'score': task.score.format(result['metric'])}
        for task, result in results.items()
    ]  # fmt: skip
    record('quickstart', rows, command)
    notes = ' '.join(f'{line[:1].upper()}{line[1:]}.' for line in conversion if line[:1].islower())
    rows = json.loads((out / 'conversion/result.json').read_text())
    record('convert_digits', rows, command, notes)


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/quickstart'), help='results')
    parser.add_argument('--fresh', action='store_true', help='start over; the old results go')
    parser.add_argument('--record', action='store_true', help='store figures in results.json')
    args = parser.parse_args()
    out = args.out
    if args.fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    detector = Task('detection', 'RetinaNet, GhostNet 0.5x, FPN 64', out / 'retinanet_ghostnet.py',
                    160, 'coco/bbox_mAP', AP)  # fmt: skip
    classifier = Task('classification', 'GhostNet 0.5x', CLASSIFIER, 64, 'accuracy/top1', TOP1)
    print('1/5 the data: handwritten digits, in images of their own and in cluttered scenes')
    if not Path('data/digits').is_dir():
        run(out / 'data.log', TOOLS / 'data/make_digits.py', 'data/digits')
    print("2/5 GhostNet into MMDetection's RetinaNet")
    log = detector.config.with_suffix('.log')
    run(log, TOOLS / 'swap_backbone.py', *arguments(detector.config))
    print('3/5 training and testing: about 10 minutes on 2 cores, an interrupted run goes on')
    results = {task: train(task, out / task.name) for task in (detector, classifier)}
    print("4/5 timm's ResNet-18 trained, converted to 70 % of its latency, tuned: 3 minutes")
    conversion = converted(out / 'conversion')
    print('5/5 images, the table and the page')
    if args.record:
        record_all(results, conversion, out)
    report(results, conversion, out)


if __name__ == '__main__':
    main()
