"""FSDP keeps Ghost blocks in one unit, and trains as one process does."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.registry import FUNCTIONS
from torch import nn

import ghost_plugin as gp
from ghost_plugin.backbones.bottlenecks import GhostBottleneck
from ghost_plugin.backbones.g_ghost_regnet import RegNetBottleneck
from ghost_plugin.layers.ghost import Ghost

ROOT = Path(__file__).parents[3]


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


@pytest.mark.slow
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
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
