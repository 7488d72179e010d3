"""The line of progress."""

import warnings
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')

from ghost_plugin.integrations.openmmlab.progress_hook import ProgressHook


def test_a_loss_with_gradients_is_shown_without_a_warning(capsys):
    state = dict(iter=0, max_iters=4, epoch=0, max_epochs=1, experiment_name='mine_20260101')
    runner, hook = SimpleNamespace(**state), ProgressHook()
    hook.before_train(runner)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        hook.after_train_iter(runner, 0, outputs={'loss': torch.ones((), requires_grad=True)})
    assert 'mine: epoch 1/1, 25 %, loss 1.000' in capsys.readouterr().err
