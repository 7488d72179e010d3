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
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if not is_main_process() or now - self.shown < _INTERVAL[terminal]:
            return
        self.shown = now
        done = runner.iter + 1
        spent = (now - self.started) / (done - self.first)
        left = int(spent * (runner.max_iters - done))
        loss = f'loss {outputs["loss"].item():.3f}' if outputs and 'loss' in outputs else ''
        line = (
            f'{self.label}: epoch {runner.epoch + 1}/{runner.max_epochs}, '
            f'{100 * done // runner.max_iters} %, {loss}{self.metric}, '
            f'{left // 60}:{left % 60:02d} left'
        )
        self._write(line, terminal)

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
            line = f'{self.label}: done{self.metric}, {spent // 60}:{spent % 60:02d}'
            self._write(line, sys.stderr.isatty())
            sys.stderr.write('\n' if sys.stderr.isatty() else '')

    @staticmethod
    def _write(line: str, terminal: bool) -> None:
        sys.stderr.write(f'\r\033[K{line}' if terminal else f'{line}\n')
        sys.stderr.flush()
