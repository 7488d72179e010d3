"""Convs that oneDNN has in its own layout, and models that TorchScript calls."""

import pytest
import torch
import torch.nn.functional as F
from helpers.chains import JOINS, READS, Calls, chain, check_close
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.comparison import Flat
from ghost_plugin.deploy.concat_elimination.lazy_concat import keep_apart
from ghost_plugin.deploy.inference import channels_last, of_traced
from ghost_plugin.deploy.onednn_prepack import Packed, packable

X = torch.randn(2, 3, 16, 12)

pytestmark = pytest.mark.skipif(not packable([X]), reason='this PyTorch has no packed convs')


@torch.no_grad()
def calls_of(model, x):
    """What a packed model calls; it must give what the model gives, for other values, too."""
    x = channels_last(x)
    packed = Packed(model, [x])
    for given in (x, torch.randn_like(x)):
        with Calls() as calls:
            found = packed(given)
        check_close(found, model(given))
    return calls.of


@pytest.mark.parametrize('name', ['GhostNet', 'GhostNetV2', 'GhostNetV3', 'GGhostRegNet'])
def test_backbones_call_packed_convs_but_for_single_pixels(name, randomise_norms):
    build = getattr(gp, name)
    options = {} if name == 'GGhostRegNet' else {'width': 0.5}
    model = gp.fuse(randomise_norms(build(**options)).eval())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), Calls() as before:
        model(x)
    after = calls_of(model, x)
    assert after['conv2d_run'] + after['convolution'] == before.of['convolution']
    assert after['conv2d_run'] > 3 * after['convolution']
    assert after['relu_'] < before.of['relu_']


class Twice(nn.Module):
    """A ReLU behind a conv whose own maps are read, too."""

    def __init__(self, relu):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), relu

    def forward(self, x):
        maps = self.conv(x)
        return self.relu(maps), maps


@pytest.mark.parametrize(
    'relu',
    [nn.ReLU(), nn.ReLU(inplace=True), torch.relu_, torch.relu, lambda x: F.relu(x, True),
     lambda x: x.relu_(), lambda x: x.add_(1).relu_(), lambda x: x[:, :2].relu_()],
)  # fmt: skip
def test_a_relu_joins_its_conv_only_in_place(relu):
    calls_of(Twice(relu), X)


CONVS = {
    'groups': lambda: nn.Conv2d(12, 24, 3, groups=4),
    'dilated': lambda: nn.Conv2d(12, 12, (3, 1), 2, (2, 0), 2),
    'same': lambda: nn.Conv2d(12, 12, 3, padding='same'),
    'reflected': lambda: nn.Conv2d(12, 12, 3, padding=1, padding_mode='reflect', bias=False),
    'double': lambda: nn.Sequential(nn.Identity(), nn.Conv2d(12, 12, 3).double()),
    'named': lambda: Named(),
    'rows': lambda: nn.Sequential(nn.Flatten(0, 1), nn.Conv1d(16, 4, 1)),
}


class Named(nn.Module):
    """Arguments by name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 5, 3)

    def forward(self, x):
        y = F.conv2d(input=x, weight=self.conv.weight, stride=(2, 1), bias=self.conv.bias)
        return y + F.conv2d(x, weight=self.conv.weight, stride=(2, 1))


@pytest.mark.parametrize('name', CONVS)
def test_any_conv_gives_the_same(name):
    x = torch.randn(2, 12, 16, 12)
    calls_of(CONVS[name](), x.double() if name == 'double' else x)


@pytest.mark.parametrize('name', READS | JOINS)
@pytest.mark.parametrize('apart', [False, True])
def test_chains_give_the_same_traced(name, apart):
    model = chain(nn.ReLU(inplace=True), (READS | JOINS)[name](), nn.ReLU(inplace=True))
    with torch.no_grad():
        want = model(X)
    if apart:
        keep_apart(model)
    check_close(of_traced(model)([X]), want)


@pytest.mark.parametrize('backend', ['torchscript', 'torchscript-split'])
def test_optimize_traces_each_shape(backend):
    model = gp.GhostNet(0.5, out_indices=(3,)).eval()
    run = gp.optimize(model, torch.randn(2, 3, 64, 64), backend, rounds=1)
    for size in ((2, 3, 64, 64), (1, 3, 96, 33)):
        x = torch.randn(size)
        check_close(run(x), model(x))


class Chosen(nn.Module):
    """Weights that depend on the picture."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return F.conv2d(x, self.conv.weight * x.mean(), self.conv.bias)


class Branch(nn.Module):
    """Layers that depend on the picture."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


@pytest.mark.parametrize('kind', [Chosen, Branch])
def test_what_depends_on_values_is_refused(kind):
    model = nn.Sequential(kind(), gp.GhostConv2d(4 if kind is Chosen else 3, 4, 1)).eval()
    with pytest.raises(ValueError, match=r'torchscript does not work here: .*other values'):
        gp.optimize(model, X, 'torchscript', rounds=1)


def test_drawing_goes_on_as_before():
    flat = Flat(chain(nn.ReLU()), X)
    state = torch.get_rng_state()
    of_traced(flat)([X])
    assert torch.equal(state, torch.get_rng_state())
