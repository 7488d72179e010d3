"""Inference functions of single runtimes."""

import subprocess
import sys

import pytest
import torch

from ghost_plugin.deploy.inference import _fits, pytorch_fn
from ghost_plugin.utils import optional

SIGNALLED = """
import faulthandler, gc, os, signal, torch
from ghost_plugin.deploy.inference import openvino_fn
from openvino import Model, Type, opset13

faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *given: None)
x = opset13.parameter([1, 3], Type.f32)
first, second = (openvino_fn(Model([opset13.relu(x)], [x])) for _ in range(2))
for run in (first, second):
    assert run([torch.ones(1, 3)])[0].tolist() == [[1, 1, 1]]
del run, first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print('alive')
"""


def test_signals_after_openvino_models_are_deleted():
    if not optional.usable('openvino'):
        pytest.skip('needs openvino')
    done = subprocess.run([sys.executable, '-c', SIGNALLED], capture_output=True, text=True)
    assert done.stdout == 'alive\n', done.stderr


def test_inputs_stay_unchanged_and_outputs_can_be_trained_on():
    x = torch.ones(1, 2, 2, 2)
    (out,) = pytorch_fn(lambda x: x.mul_(2), channels_last=True)([x])
    assert (x == 1).all() and (out == 2).all()
    assert not out.is_inference()
    (out,) = pytorch_fn(lambda x: x @ x, torch.bfloat16)([x])
    assert out.dtype == torch.float32


def test_names_stand_for_any_size():
    assert _fits((4, 3), ['batch', 3])
    assert not _fits((4, 3), ['batch', 5])
    assert not _fits((4,), ['batch', 3])
