"""Training on several processes, in parts, killed and resumed gives the same losses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.runner import Runner

from ghost_plugin.integrations.openmmlab import runner_setup

ROOT = Path(__file__).parents[2]
# The mean loss of all processes, of every step; and a death at a step.
CURVE = """
import json, os, signal
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class Curve(Hook):
    def before_train(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == int(os.environ.get('DIE_AT', 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, 'mean')
        self.losses.append(float(loss))

    def after_train(self, runner):
        if is_main_process():
            with open(runner.work_dir + '/curve.json', 'w') as file:
                json.dump(self.losses, file)
"""
# 36 images without random augmentation; norms in eval mode.
CONFIG = """
_base_ = '{root}/configs/classification/ghostnet-050_digits.py'
custom_imports = dict(imports=['curve'])
custom_hooks = [dict(type='Curve')]
model = dict(backbone=dict(norm_eval=True), head=dict(num_classes=3, dropout_rate=0.0))
data_preprocessor = dict(num_classes=3)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(batch_size={batch}, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root='{data}', pipeline=pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False,
                      dataset=dict(data_root='{data}', pipeline=pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(_delete_=True, type='OptimWrapper', accumulative_counts={parts},
                     optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, end=2)]
train_cfg = dict(max_epochs={epochs}, val_interval=1)
"""


@pytest.fixture
def study(pictures, tmp_path, monkeypatch):
    """Write a config; run it here or by torchrun; its curve."""
    (tmp_path / 'curve.py').write_text(CURVE)
    monkeypatch.syspath_prepend(tmp_path)
    return Study(tmp_path, pictures)


class Study:
    def __init__(self, folder, pictures):
        self.folder, self.pictures = folder, pictures

    def config(self, batch=12, epochs=2, parts=1):
        path = self.folder / f'batch{batch}_epochs{epochs}_parts{parts}.py'
        options = dict(root=ROOT, data=self.pictures, batch=batch, epochs=epochs, parts=parts)
        path.write_text(CONFIG.format(**options))
        return path

    def here(self, name, resumed=False, **options):
        """Train in this process; losses of the steps."""
        cfg = runner_setup.load_run(self.config(**options), self.folder / name)
        runner_setup.use_atomic_checkpoints(cfg)
        if resumed:
            runner_setup.set_resume(cfg, 'auto')
        Runner.from_cfg(cfg).train()
        return self.curve(name)

    def tool(self, name, *args, processes=1, die_at=0, **options):
        """Train with tools/train.py; its exit status."""
        launcher = [sys.executable]
        if processes > 1:
            launcher += ['-m', 'torch.distributed.run', '--standalone']
            launcher += [f'--nproc-per-node={processes}']
            args = (*args, '--launcher', 'pytorch')
        command = [*launcher, 'tools/train.py', self.config(**options), *args]
        paths = os.pathsep.join([str(ROOT), str(self.folder)])
        env = {**os.environ, 'PYTHONPATH': paths, 'DIE_AT': str(die_at), 'OMP_NUM_THREADS': '1'}
        command = [*map(str, command), '--work-dir', str(self.folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
        return done.returncode, done.stderr

    def curve(self, name):
        return json.loads((self.folder / name / 'curve.json').read_text())

    def weights(self, name):
        last = runner_setup.last_checkpoint(self.folder / name)
        return torch.load(last, weights_only=False)['state_dict']

    def accuracies(self, name):
        logged = runner_setup.read_scalars(self.folder / name)
        return [row['accuracy/top1'] for row in logged if 'accuracy/top1' in row]


def close(one, other, tolerance=1e-4):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_a_run_in_two_parts_ends_as_one_run(study):
    whole = study.here('whole')
    study.here('parts', epochs=1)
    close(study.here('parts', resumed=True), whole[3:])
    close(study.weights('parts'), study.weights('whole'))


@pytest.mark.slow
def test_two_processes_train_evaluate_and_resume_as_one_with_the_doubled_batch(study):
    whole = study.here('one')
    assert min(whole[3:]) < min(whole[:3])  # the second epoch learns on
    for epochs, resumed in ((1, []), (2, ['--resume'])):
        status, errors = study.tool('two', *resumed, processes=2, batch=6, epochs=epochs)
        assert status == 0, errors
        part = study.curve('two')
        close(part, whole[3 * epochs - 3 : 3 * epochs])
    close(study.weights('two'), study.weights('one'))
    assert study.accuracies('two') == study.accuracies('one')


@pytest.mark.slow
def test_two_half_batches_make_one_step(study):
    whole, parts = study.here('whole'), study.here('parts', batch=6, parts=2)
    # MMEngine logs the loss of each half batch as it is, and divides for the gradient only.
    close([(a + b) / 2 for a, b in zip(parts[::2], parts[1::2], strict=True)], whole)


@pytest.mark.slow
def test_killed_within_an_epoch_it_goes_on_to_the_same_end(study):
    whole = study.here('whole', epochs=3)
    status, _ = study.tool('killed', epochs=3, die_at=5)
    assert status == -signal.SIGKILL
    saved = list((study.folder / 'killed').glob('*.pth*'))
    assert [path.name for path in saved] == ['epoch_1.pth']
    close(study.here('killed', resumed=True, epochs=3), whole[3:])
    close(study.weights('killed'), study.weights('whole'))
