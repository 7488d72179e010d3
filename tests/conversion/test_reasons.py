"""Reasons why a conv is kept that the module itself shows."""

import pytest
import torch
from helpers.small import ALL, X, net
from torch import nn
from torch.nn.utils import parametrizations

import ghost_plugin as gp
from ghost_plugin.conversion.reasons import FINAL, REASONS, conversion_blocker, other_conv


class Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


class Custom(nn.Module):
    """A convolution of a class of its own."""

    in_channels, out_channels, kernel_size = 3, 4, (3, 3)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))


@pytest.mark.parametrize(
    ('build', 'code'),
    [
        (lambda: nn.Conv2d(3, 4, 3), ''),
        (lambda: Own(3, 4, 3), 'subclass'),
        (lambda: nn.Conv1d(3, 4, 3), '1d'),
        (lambda: nn.Conv3d(3, 4, 3), '3d'),
        (lambda: nn.ConvTranspose2d(3, 4, 3), 'transposed'),
        (Custom, 'custom'),
        (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), 'parametrized'),
    ],
)
def test_what_a_module_is(build, code):
    assert conversion_blocker(build()) == code
    assert code in FINAL and code in REASONS if code else True


@pytest.mark.parametrize('build', [lambda: nn.Linear(3, 4), lambda: nn.BatchNorm2d(3), nn.ReLU])
def test_other_modules_are_no_convs(build):
    assert other_conv(build()) is None


def hook(*args):
    return None


@pytest.mark.parametrize(
    'register',
    ['register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook'],
)
def test_hooks_on_a_conv_keep_it_and_those_on_others_survive(register):
    model = net()
    getattr(model[3], register)(hook)
    getattr(model[1], register)(hook)
    converted, plan = gp.convert(model, X, **ALL)
    assert [row.reason for row in plan.layers] == ['', 'hooks', '']
    count = sum(len(v) for k, v in vars(converted[1]).items() if k.endswith('_hooks'))
    assert count == sum(len(v) for k, v in vars(model[1]).items() if k.endswith('_hooks')) == 1
    plan = plan.replace_layer('3', decision='convert')
    with pytest.raises(ValueError, match=r"'3'.*hooks"):
        plan.apply(model)
