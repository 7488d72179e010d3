"""Networks that hold what cannot be copied: converted in place, and refused by name elsewhere."""

import ctypes
import functools
import logging
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.utils.modules import deepcopy_detached


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv2(torch.relu(self.conv1(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3), Block(), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.block(self.stem(x)))


HELD = {
    'lock': threading.Lock,
    'file': lambda: open(__file__),
    'generator': lambda: (i for i in range(3)),
    'pool': lambda: ThreadPoolExecutor(1),
    'module': lambda: sys,
    'in a dictionary': lambda: {'a': [threading.RLock()]},
    'pointer': lambda: ctypes.pointer(ctypes.c_int(1)),
}
PLACES = {'': 'held', 'block': 'block.held', 'block.conv1': 'block.conv1.held'}


@pytest.fixture
def x():
    return torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=HELD)
def held(request):
    value = HELD[request.param]()
    yield value
    for end in ('shutdown', 'close'):
        getattr(value, end, lambda: None)()


def holding(value, place):
    model = Net().eval()
    model.get_submodule(place).held = value
    return model


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize(
    'mode', [{}, {'macs': 0.7}, {'reconstruct': 'layer'}, {'reconstruct': 'block'}]
)
def test_in_place_nothing_is_copied(held, place, mode, x):
    mode = mode | ({'steps': 3} if 'reconstruct' in mode else {})
    wanted, _ = gp.convert(Net().eval(), x, calibration=[x], **mode)
    model = holding(held, place)
    got, _ = gp.convert(model, x, calibration=[x], inplace=True, optimizers=[], **mode)
    assert got is model and got.get_submodule(place).held is held
    torch.testing.assert_close(got.state_dict(), wanted.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('place', PLACES)
def test_a_copy_is_refused_by_the_name_of_what_it_would_hold(held, place, x):
    model = holding(held, place)
    name = PLACES[place].replace('.', r'\.')
    if place != 'block.conv1':  # a conv that is replaced is not copied
        with pytest.raises(ValueError, match=f"'{name}.*inplace=True"):
            gp.convert(model, x)
    with pytest.raises(ValueError, match=f"'{name}"):
        gp.fuse(model, x)
    assert gp.plan(model, x, macs=0.7).layers == gp.plan(Net().eval(), x, macs=0.7).layers


def test_other_doors(tmp_path, x):
    model = holding(threading.Lock(), 'block')
    with pytest.raises(ValueError, match=r"'block\.held'.*fused=False"):
        gp.export(model, x, tmp_path / 'net.pt')
    assert not list(tmp_path.iterdir())
    gp.export(model, x, tmp_path / 'net.pt', fused=False)
    with pytest.raises(ValueError, match=r"'block\.held'"):
        gp.optimize(model, x, 'fused')
    report = gp.optimize(model, x, 'eager', rounds=1).report
    assert report.chosen == 'eager'


def test_a_budget_of_time_in_place(x):
    model = holding(threading.Lock(), 'block')
    plan = gp.plan(model, x, macs=0.7, latency='100000ms')
    assert plan.latency


def test_functions_and_loggers_are_copied_as_ever(x):
    model = Net().eval()
    model.logger, model.function = logging.getLogger('net'), lambda y: y
    model.kept = nn.functional.relu(model.stem(x))  # with gradients
    made, _ = gp.convert(model, x)
    assert made.logger is model.logger and made is not model
    assert gp.fuse(model, x) is not model and not deepcopy_detached(model).kept.requires_grad


def test_forwards_that_hold_the_original(x):
    model = Net().eval()
    own = Block.forward
    model.block.forward = functools.partial(lambda ref, y: own(ref(), y), weakref.ref(model.block))
    with pytest.raises(ValueError, match=r"'block'.*inplace=True"):
        gp.convert(model, x)
    wanted, _ = gp.convert(Net().eval(), x, calibration=[x])
    got, _ = gp.convert(model, x, calibration=[x], inplace=True, optimizers=[])
    torch.testing.assert_close(got(x), wanted(x))


def test_errors_of_a_copy_that_name_nothing_are_the_models_own(x):
    class Proud(Net):
        def __deepcopy__(self, memo):
            raise PermissionError('no copies of me')

    with pytest.raises(PermissionError, match='no copies'):
        gp.convert(Proud().eval(), x)
    gp.convert(Proud().eval(), x, inplace=True, optimizers=[])
