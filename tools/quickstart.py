#!/usr/bin/env python3
"""GhostNet into MMDetection's RetinaNet and into a classifier, trained on digits and shown."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from _cli import fail, tool
from _digits_detector import arguments
from _terminal import figures

import ghost_plugin as gp
from ghost_plugin.integrations.pictures import draw_curves, draw_detections
from ghost_plugin.integrations.runs import build_model, last_checkpoint

TOOLS = Path(__file__).parent
CLASSIFIER = Path('configs/classification/ghostnet-050_digits.py')


@dataclass(frozen=True)
class Task:
    """One line of the table at the end."""

    name: str
    model: str
    config: Path
    side: int  # of the pictures, pixels
    metric: str
    unit: str


def run(log: Path, *command: object) -> None:
    """Run a tool; its talk goes into a log, its progress and its errors to the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, 'PYTHONWARNINGS': 'ignore'}
    with log.open('a') as out:
        done = subprocess.run([sys.executable, *map(str, command)], stdout=out, env=env)
    if done.returncode:
        fail(f'{Path(str(command[0])).name} ended with status {done.returncode}; its log is {log}. '
             'Run the quickstart again to go on')  # fmt: skip


def train(task: Task, folder: Path) -> dict:
    """Train (or go on with) a task and test it; its result lies in ``result.json`` afterwards."""
    done = folder / 'result.json'
    if done.is_file():
        print(f'{task.name}: done before, kept (--fresh starts over)')
        return json.loads(done.read_text())
    start = time.monotonic()
    log, clock = folder / 'log.txt', folder / 'seconds.txt'
    before = float(clock.read_text()) if clock.is_file() else 0.0
    try:
        run(log, TOOLS / 'train.py', task.config, '--work-dir', folder, '--resume')
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        seconds = before + time.monotonic() - start
        clock.write_text(f'{seconds:.1f}')
    checkpoint = last_checkpoint(folder)
    metrics = folder / 'metrics.json'
    run(log, TOOLS / 'test.py', task.config, checkpoint, '--work-dir', folder / 'test',
        '--json', metrics)  # fmt: skip
    cost = gp.count(build_model(task.config), torch.zeros(1, 3, task.side, task.side))
    result = {
        'metric': json.loads(metrics.read_text())[task.metric],
        'params': cost.params,
        'macs': cost.macs,
        'seconds': seconds,
        'checkpoint': str(checkpoint),
    }
    done.write_text(json.dumps(result, indent=1))
    return result


def converted(out: Path) -> list[str]:
    """timm's ResNet-18 converted by :file:`convert_digits.py`; its table."""
    done = out / 'result.json'
    if not done.is_file():
        run(out / 'log.txt', TOOLS / 'convert_digits.py', 'data/digits/classification', out)
    return figures(json.loads(done.read_text())).splitlines()


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
            f'{result["macs"] / 1e6:.1f} at {task.side} px | {task.unit} {result["metric"]:.3f} | '
            f'{minutes}:{seconds:02d} | {result["checkpoint"]} |'
        )
    lines += ['', "timm's ResNet-18 on the digits, converted:", '', *conversion]
    (out / 'table.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(['', *lines, '', f'pictures, logs and this table: {out}']))


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
    print('1/5 the data: handwritten digits, in pictures of their own and in cluttered scenes')
    if not Path('data/digits').is_dir():
        run(out / 'data.log', TOOLS / 'make_digits.py', 'data/digits')
    print("2/5 GhostNet into MMDetection's RetinaNet")
    log = detector.config.with_suffix('.log')
    run(log, TOOLS / 'swap_backbone.py', *arguments(detector.config))
    print('3/5 training and testing: about 10 minutes on 2 cores, an interrupted run goes on')
    results = {task: train(task, out / task.name) for task in (detector, classifier)}
    print("4/5 timm's ResNet-18 trained, converted to half its multiply-adds, tuned: 2 minutes")
    conversion = converted(out / 'conversion')
    print('5/5 pictures and the table')
    with (out / 'pictures.log').open('w') as log, redirect_stdout(log), redirect_stderr(log):
        draw_detections(detector.config, results[detector]['checkpoint'], out / 'detections.png')
        draw_curves({t.name: (out / t.name, t.metric) for t in results}, out / 'curves.png')
    report(results, conversion, out)


if __name__ == '__main__':
    main()
