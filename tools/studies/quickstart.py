#!/usr/bin/env python3
"""GhostNet into MMDetection's RetinaNet and into a classifier, trained on digits and shown."""

import argparse
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from _tasks import TOOLS, Task, run, train

from ghost_plugin.cli.errors import tool
from ghost_plugin.integrations.openmmlab.plots import draw_curves, draw_detections

CLASSIFIER = Path('configs/classification/ghostnet-050_digits.py')
RETINANET = 'models/retinanet_small.py'
PARTS = ('datasets/digits_detection.py', 'schedules/adamw.py', 'runtime_detection.py')


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


def report(results: dict[Task, dict], conversion: list[str], out: Path) -> None:
    """The tables, on the terminal and as Markdown."""
    lines = [
        '| Task | Model | Params (M) | MACs (M) | Metric | Training time | Checkpoint |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    for task, result in results.items():
        minutes, seconds = divmod(int(result['seconds']), 60)
        lines.append(
            f'| {task.name} | {task.model} | {result["params"] / 1e6:.3f} | '
            f'{result["macs"] / 1e6:.1f} at {task.size} px | {task.unit} {result["metric"]:.3f} | '
            f'{minutes}:{seconds:02d} | {result["checkpoint"]} |'
        )
    lines += ['', "timm's ResNet-18 on the digits, converted:", '', *conversion]
    (out / 'table.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(['', *lines, '', f'images, logs and this table: {out}']))


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/quickstart'), help='results')
    parser.add_argument('--fresh', action='store_true', help='start over; the old results go')
    args = parser.parse_args()
    out = args.out
    if args.fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    detector = Task('detection', 'RetinaNet, GhostNet 0.5x, FPN 64', out / 'retinanet_ghostnet.py',
                    160, 'coco/bbox_mAP', 'AP')  # fmt: skip
    classifier = Task('classification', 'GhostNet 0.5x', CLASSIFIER, 64, 'accuracy/top1', 'top-1 %')
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
    print('5/5 images and the table')
    with (out / 'images.log').open('w') as log, redirect_stdout(log), redirect_stderr(log):
        draw_detections(detector.config, results[detector]['checkpoint'], out / 'detections.png')
        draw_curves({t.name: (out / t.name, t.metric) for t in results}, out / 'curves.png')
    report(results, conversion, out)


if __name__ == '__main__':
    main()
