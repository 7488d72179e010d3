"""Show the progress of a training run in one line on the terminal; the log is not affected."""

import sys
import time
from typing import Any

from ...registry import HOOKS
from ...utils import optional

optional.require('mmengine')

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

# Seconds between two lines; a terminal overwrites the line, a file keeps it.
_INTERVAL = {True: 0.5, False: 20.0}


@HOOKS.register_module(force=True)
class ProgressHook(Hook):
    """Write epoch, percentage, loss, last metric and the remaining time to standard error.

    Args:
        label: First word of the line; by default the folder of the run.
    """

    priority = 'VERY_LOW'

    def __init__(self, label: str = '') -> None:
        self.label = label
        self.metric = ''

    def before_train(self, runner: Runner) -> None:
        self.label = self.label or runner.experiment_name.split('_2')[0]
        self.started, self.shown, self.first = time.monotonic(), 0.0, runner.iter

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Write the line, at most once in an interval.

        Args:
            runner: The run.
            batch_idx: Not used.
            data_batch: Not used.
            outputs: Values that the model logs; ``'loss'`` is shown.
        """
        now = time.monotonic()
        if not is_main_process() or now - self.shown < _INTERVAL[sys.stderr.isatty()]:
            return
        self.shown = now
        done = runner.iter + 1
        left = int((now - self.started) / (done - self.first) * (runner.max_iters - done))
        loss = f'loss {outputs["loss"].item():.3f}' if outputs and 'loss' in outputs else ''
        self._write(
            f'epoch {runner.epoch + 1}/{runner.max_epochs}, {100 * done // runner.max_iters} %, '
            f'{loss}{self.metric}, {left // 60}:{left % 60:02d} left'
        )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the first metric for the line.

        Args:
            runner: The run.
            metrics: Metrics of the evaluation.
        """
        if metrics:
            name, value = next(iter(metrics.items()))
            self.metric = f', {name} {value:.3f}'

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            spent = int(time.monotonic() - self.started)
            end = '\n' if sys.stderr.isatty() else ''
            self._write(f'done{self.metric}, {spent // 60}:{spent % 60:02d}{end}')

    def _write(self, text: str) -> None:
        line = f'{self.label}: {text}'
        sys.stderr.write(f'\r\033[K{line}' if sys.stderr.isatty() else f'{line}\n')
        sys.stderr.flush()
