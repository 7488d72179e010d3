"""Training on several processes, in parts, killed and gone on with: always the same curve."""

import copy
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner, save_checkpoint
from torch import nn

import ghost_plugin as gp
from ghost_plugin.backbones.bottlenecks import GhostBottleneck
from ghost_plugin.backbones.g_ghost_regnet import RegNetBottleneck
from ghost_plugin.integrations.openmmlab import checkpoint_hook, runner_setup
from ghost_plugin.layers.ghost import Ghost

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
# 36 pictures, no changes of them at random, norms that no batch moves.
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


def test_two_half_batches_make_one_step(study):
    whole, halves = study.here('whole'), study.here('halves', batch=6, parts=2)
    # MMEngine logs the loss of each half as it is, and divides for the gradient only.
    close([(a + b) / 2 for a, b in zip(halves[::2], halves[1::2], strict=True)], whole)


def test_killed_within_an_epoch_it_goes_on_to_the_same_end(study):
    whole = study.here('whole', epochs=3)
    status, _ = study.tool('killed', epochs=3, die_at=5)
    assert status == -signal.SIGKILL
    saved = list((study.folder / 'killed').glob('*.pth*'))
    assert [path.name for path in saved] == ['epoch_1.pth']
    close(study.here('killed', resumed=True, epochs=3), whole[3:])
    close(study.weights('killed'), study.weights('whole'))


WRITE = """
import json, resource, signal, sys, torch
from mmengine.runner import save_checkpoint
from ghost_plugin.integrations.openmmlab import checkpoint_hook

path, backend = sys.argv[1], json.loads(sys.argv[2])
large = {'state_dict': {'a': torch.ones(2**16)}}
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
save_checkpoint(large, path, backend_args=backend)
"""


@pytest.mark.parametrize('whole', [True, False], ids=['ours', "MMEngine's own"])
def test_killed_while_it_saves_it_leaves_the_file_that_was_there(whole, tmp_path):
    """A limit on the size of files kills a process in the middle of its writing."""
    path = tmp_path / 'epoch_1.pth'
    backend = {'backend': checkpoint_hook.BACKEND_NAME} if whole else None
    save_checkpoint({'state_dict': {'a': torch.ones(3)}}, str(path), backend_args=backend)
    # A process of its own: a fork of one with threads may wait for a lock for ever.
    done = subprocess.run([sys.executable, '-c', WRITE, str(path), json.dumps(backend)], cwd=ROOT)
    assert done.returncode == -signal.SIGXFSZ
    assert zipfile.is_zipfile(path) == whole
    if whole:
        assert torch.load(path)['state_dict']['a'].shape == (3,)


def test_a_lost_pointer_and_half_a_file_are_passed_over(tmp_path):
    with pytest.raises(FileNotFoundError, match='train first'):
        runner_setup.last_checkpoint(tmp_path)
    for epoch in (9, 10):
        torch.save({'epoch': epoch}, tmp_path / f'epoch_{epoch}.pth')
    (tmp_path / 'epoch_11.pth').write_bytes((tmp_path / 'epoch_10.pth').read_bytes()[:100])
    torch.save({}, tmp_path / 'best_accuracy_top1_epoch_12.pth')
    for pointer in (None, '', str(tmp_path / 'epoch_11.pth'), str(tmp_path / 'epoch_8.pth')):
        if pointer is not None:
            (tmp_path / 'last_checkpoint').write_text(pointer)
        assert runner_setup.last_checkpoint(tmp_path).name == 'epoch_10.pth'


@pytest.mark.parametrize('keep, kept', [(1, 2), (3, 3), (-1, -1)])
def test_the_hook_never_keeps_only_one(keep, kept):
    assert checkpoint_hook.AtomicCheckpointHook(max_keep_ckpts=keep).max_keep_ckpts == kept


def units(model, **options):
    """Names of the modules that FSDP would make units of."""
    from torch.distributed.fsdp.wrap import _recursive_wrap

    class Unit(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    policy = FUNCTIONS.get('ghost_plugin.ghost_wrap_policy')
    wrapped = copy.deepcopy(model)
    _recursive_wrap(
        wrapped, lambda **given: policy(**given, **options), Unit, ignored_modules=set(),
        ignored_params=set(),
    )  # fmt: skip
    names = [name for name, m in wrapped.named_modules() if isinstance(m, Unit)]
    return [name.replace('.module', '') for name in names]


NETS = {
    'GhostNet': (lambda: gp.GhostNet(0.5), GhostBottleneck),
    'G-Ghost': (lambda: gp.GGhostRegNet('002'), RegNetBottleneck),
    'converted': (lambda: converted(), Ghost),
}


def converted():
    net = nn.Sequential(*[nn.Sequential(nn.Conv2d(c, 2 * c, 3), nn.ReLU()) for c in (4, 8, 16)])
    plan = gp.plan(net.eval(), torch.randn(1, 4, 9, 9), keep_first=False, keep_last=False)
    return plan.apply(net, inherit=False)


@pytest.mark.parametrize('name', NETS)
def test_fsdp_never_tears_a_ghost_block(name):
    build, kind = NETS[name]
    net = build()
    blocks = [name for name, m in net.named_modules() if isinstance(m, kind)]
    assert units(net, min_params=10**9) == []
    found = units(net, min_params=1)
    assert len(found) > 2
    assert not [one for one in found for block in blocks if f'{one}.'.startswith(f'{block}.')]


FSDP = """
import copy, json, torch, torch.distributed as dist
from mmengine.model import MMFullyShardedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from torch.distributed.fsdp import FullyShardedDataParallel

dist.init_process_group('gloo')
init_default_scope('mmpretrain')
torch.manual_seed(0)
backbone = dict(type='ghost_plugin.GhostNet', width=0.5, out_indices=(5,), norm_eval=True)
dense = MODELS.build(dict(type='ImageClassifier', backbone=backbone,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=480)))
sharded = MMFullyShardedDataParallel(copy.deepcopy(dense), device_id=torch.device('cpu'),
    auto_wrap_policy=dict(type='ghost_plugin.ghost_wrap_policy', min_params=10000))
assert sum(isinstance(m, FullyShardedDataParallel) for m in sharded.modules()) > 5
pictures, labels = torch.randn(4, 3, 64, 64), [0, 3, 1, 2]

def curve(model, mine):
    samples = [DataSample().set_gt_label(label) for label in labels[mine]]
    data = dict(inputs=pictures[mine], data_samples=samples)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 1e-2))
    losses = [model.train_step(data, wrapper)['loss'].detach() for step in range(3)]
    for loss in losses:
        dist.all_reduce(loss)
    return [float(loss) / 2 for loss in losses]

first = 2 * dist.get_rank()
both = curve(dense, slice(0, 4)), curve(sharded, slice(first, first + 2))
if dist.get_rank() == 0:
    print('losses', json.dumps(both))
"""


@pytest.mark.skipif(torch.__version__ < (2, 4), reason='FSDP of CPUs needs torch 2.4')
def test_fsdp_with_the_policy_gives_the_same_losses_as_one_process(tmp_path):
    (tmp_path / 'train.py').write_text(FSDP)
    run = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command = [sys.executable, *run, str(tmp_path / 'train.py')]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith('losses'))
    one, two = json.loads(line.removeprefix('losses'))
    assert one[0] != one[2]
    close(two, one)
