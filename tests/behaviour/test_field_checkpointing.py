"""Gradient checkpointing, of either kind, changes nothing of what a conversion gives."""

import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as module
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential

import ghost_plugin as gp
from ghost_plugin.utils.modules import plain_forward


class Block(nn.Module):
    def __init__(self, number, width, how):
        super().__init__()
        self.how = how
        self.conv1 = nn.Conv2d(number, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def inner(self, x):
        return torch.relu(self.conv2(torch.relu(self.conv1(x))))

    def forward(self, x):
        return self.how(self.inner, x)


class Net(nn.Module):
    """Blocks that are checkpointed, the first one on the input itself."""

    def __init__(self, how, frozen=False):
        super().__init__()
        torch.manual_seed(3)
        self.frozen = frozen
        self.blocks = nn.Sequential(Block(3, 12, how), Block(12, 16, how))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self.blocks(x)
        return self.head(x)


class Foreign(torch.autograd.Function):
    """As wrappers of other packages: runs without gradients, and again in the backward pass."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        torch.autograd.backward(y, gradient)
        return None, x.grad


def plain(function, x):
    return function(x)


def in_a_row(function, x):
    return checkpoint_sequential([function, nn.Identity()], 2, x, use_reentrant=True)


def where_gradients_are(function, x):  # as OpenMMLab's with_cp=True
    return checkpoint(function, x, use_reentrant=True) if x.requires_grad else function(x)


def no_gradients_inside(function, x):
    with torch.no_grad():
        return function(x)


HOWS = {
    're-entrant': partial(checkpoint, use_reentrant=True),
    'non-re-entrant': partial(checkpoint, use_reentrant=False),
    'sequential': in_a_row,
    'with_cp': where_gradients_are,
    'the function itself': lambda f, x: CheckpointFunction.apply(f, True, x),
    'nested': lambda f, x: checkpoint(
        lambda y: checkpoint(f, y, use_reentrant=True), x, use_reentrant=True
    ),
    'without gradients inside': lambda f, x: checkpoint(
        lambda y: no_gradients_inside(f, y), x, use_reentrant=False
    ),
}


@pytest.fixture
def x():
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('how', HOWS)
def test_a_budget_gives_the_same_plan(how, frozen, x):
    wanted = gp.plan(Net(plain, frozen).eval(), x, macs=0.7, calibration=[x])
    got = gp.plan(Net(HOWS[how], frozen).eval(), x, macs=0.7, calibration=[x])
    assert got.layers == wanted.layers
    assert gp.plan(Net(HOWS[how]).eval(), x, params=0.7).layers == (
        gp.plan(Net(plain).eval(), x, params=0.7).layers
    )


@pytest.mark.parametrize('mode', [None, 'layer', 'block'])
@pytest.mark.parametrize('how', HOWS)
def test_reconstruction_gives_the_same_weights(how, mode, x):
    got, wanted = (
        gp.convert(Net(each).eval(), x, calibration=[x], reconstruct=mode, steps=6)[0]
        for each in (HOWS[how], plain)
    )
    torch.testing.assert_close(got.state_dict(), wanted.state_dict(), rtol=0, atol=0)


def test_functions_of_other_packages_are_heard_in_the_backward_pass(x):
    class Behind(Net):  # so that there is a gradient to the checkpointed part
        def __init__(self, how):
            super().__init__(how)
            self.stem = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return super().forward(self.stem(x))

    wanted, got = (
        gp.plan(Behind(how).eval(), x, macs=0.7, calibration=[x], keep_first=False)
        for how in (plain, Foreign.apply)
    )
    for row, same in zip(got.layers, wanted.layers, strict=True):
        assert row.ratio == same.ratio and row.scores.keys() == same.scores.keys()
        for ratio, score in row.scores.items():
            assert score == pytest.approx(same.scores[ratio], rel=1e-4)


@pytest.mark.parametrize('suffix', ['.onnx', '.pt'])
def test_files(tmp_path, suffix, x):
    if suffix == '.onnx':
        pytest.importorskip('onnx')
        pytest.importorskip('onnxruntime')
    model = Net(HOWS['re-entrant']).eval()
    gp.export(model, x, tmp_path / f'net{suffix}', dynamic='batch')
    assert gp.count(model, x) == gp.count(Net(plain).eval(), x)


def test_training_is_checkpointed_as_before(x):
    before = CheckpointFunction.__dict__.get('apply'), vars(module).copy()
    gp.plan(Net(HOWS['re-entrant']).eval(), x, macs=0.7)
    with pytest.raises(ValueError, match='macs'):
        gp.plan(Net(HOWS['re-entrant']).eval(), x, macs=1e-9)
    assert before == (CheckpointFunction.__dict__.get('apply'), vars(module))
    calls = []
    leaf = x.clone().requires_grad_()

    def function(y):
        calls.append(torch.is_grad_enabled())
        return y * 2

    checkpoint(function, leaf, use_reentrant=True).sum().backward()
    assert calls == [False, True]


def test_two_threads_leave_in_any_order():
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with plain_forward():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    with plain_forward():
        thread.start()
        entered.wait()
    assert 'apply' in vars(CheckpointFunction)  # the other is still within
    leave.set()
    thread.join()
    assert 'apply' not in vars(CheckpointFunction)


NARROW = {
    'mmdet.ResNet': {'depth': 18, 'base_channels': 8, 'norm_eval': False},
    'mmdet.Res2Net': {
        'depth': 50,
        'base_channels': 8,
        'norm_eval': False,
        'num_stages': 1,
        'strides': (1,),
        'dilations': (1,),
        'out_indices': (0,),
    },
    'mmpretrain.MobileNetV2': {'widen_factor': 0.25, 'out_indices': (2,)},
}


@pytest.mark.parametrize(
    'kind', [pytest.param(k, marks=[pytest.mark.slow] * (k != 'mmdet.ResNet')) for k in NARROW]
)
def test_with_cp_of_openmmlab(kind):
    name = kind.split('.')[0]
    registry = pytest.importorskip('mmengine.registry')
    pytest.importorskip('mmcv')
    pytest.importorskip(f'{name}.models')
    plans = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = registry.MODELS.build(dict(type=kind, with_cp=with_cp, **NARROW[kind]))
        model.eval()
        made = gp.plan(model, torch.zeros(2, 3, 32, 32), macs=0.95)
        plans.append([(row.name, row.ratio, row.scores) for row in made.layers])
    assert plans[0] == plans[1]
