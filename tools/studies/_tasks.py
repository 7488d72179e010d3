"""Runs of train.py and test.py for the studies; finished runs are kept."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import ghost_plugin as gp
from ghost_plugin.cli.errors import fail
from ghost_plugin.integrations.openmmlab.runner_setup import build_model, last_checkpoint

TOOLS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Task:
    """A row of the final table."""

    name: str
    model: str
    config: Path
    size: int  # height and width of the images, pixels
    metric: str
    score: str  # format of the metric


def run(log: Path, *command: object) -> None:
    """Run a script; its output goes into a log, its progress and errors to the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, 'PYTHONWARNINGS': 'ignore'}
    with log.open('a') as out:
        done = subprocess.run([sys.executable, *map(str, command)], stdout=out, env=env)
    if done.returncode:
        fail(f'{Path(str(command[0])).name} ended with status {done.returncode}; its log is {log}. '
             'Run the same command again to go on')  # fmt: skip


def train(task: Task, folder: Path) -> dict:
    """Train (or resume) a task and test it; the result is kept in ``result.json``."""
    done = folder / 'result.json'
    if done.is_file():
        print(f'{task.name}: done before, kept in {done}')
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
    result = test(task, last_checkpoint(folder), folder) | {'seconds': seconds}
    done.write_text(json.dumps(result, indent=1))
    return result


def test(task: Task, checkpoint: Path, folder: Path) -> dict:
    """Metrics and costs of a checkpoint of a task."""
    metrics = folder / 'metrics.json'
    run(folder / 'log.txt', TOOLS / 'test.py', task.config, checkpoint,
        '--work-dir', folder / 'test', '--json', metrics)  # fmt: skip
    cost = gp.count(build_model(task.config), torch.zeros(1, 3, task.size, task.size))
    found = json.loads(metrics.read_text())
    return {
        'metric': found[task.metric],
        'metrics': found,
        'params': cost.params,
        'macs': cost.macs,
        'checkpoint': str(checkpoint),
    }
