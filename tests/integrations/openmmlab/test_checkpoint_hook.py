"""Checkpoints that a killed process leaves complete."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import json
import signal
import subprocess
import sys
import zipfile

import torch
from mmengine.registry import HOOKS
from mmengine.runner import save_checkpoint

from ghost_plugin.integrations.openmmlab import checkpoint_hook

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


@pytest.mark.parametrize('whole', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_while_it_saves_it_leaves_the_file_that_was_there(whole, tmp_path):
    """A limit on the size of files kills a process in the middle of its writing."""
    path = tmp_path / 'epoch_1.pth'
    backend = {'backend': checkpoint_hook.BACKEND_NAME} if whole else None
    save_checkpoint({'state_dict': {'a': torch.ones(3)}}, str(path), backend_args=backend)
    # A process of its own: a fork of one with threads may wait for a lock for ever.
    done = subprocess.run([sys.executable, '-c', WRITE, str(path), json.dumps(backend)])
    assert done.returncode == -signal.SIGXFSZ
    assert zipfile.is_zipfile(path) == whole
    if whole:
        assert torch.load(path)['state_dict']['a'].shape == (3,)


@pytest.mark.parametrize('keep, kept', [(1, 2), (3, 3), (-1, -1)])
def test_the_hook_never_keeps_only_one(keep, kept):
    assert checkpoint_hook.AtomicCheckpointHook(max_keep_ckpts=keep).max_keep_ckpts == kept


def test_the_old_name_still_builds():
    with pytest.warns(FutureWarning, match=r'use ghost_plugin\.AtomicCheckpointHook'):
        hook = HOOKS.build({'type': 'ghost_plugin.WholeCheckpointHook', 'interval': 3})
    assert type(hook) is checkpoint_hook.AtomicCheckpointHook and hook.interval == 3


def test_matching_weights_are_loaded(tmp_path):
    net = torch.nn.Conv2d(3, 4, 1)
    torch.save({'state_dict': {**net.state_dict(), 'more': torch.ones(1)}}, tmp_path / 'a.pth')
    other = torch.nn.Conv2d(3, 4, 1)
    checkpoint_hook.load_matching(other, str(tmp_path / 'a.pth'))
    torch.testing.assert_close(other.state_dict(), net.state_dict())
