"""Patterns, settings, and the reasons that patterns and neighbours give."""

import pytest
import torch
from helpers import small
from torch import nn
from torch.nn.utils import parametrizations

import ghost_plugin as gp
from ghost_plugin.conversion.inspection import inspect_convs
from ghost_plugin.conversion.reasons import REASONS
from ghost_plugin.conversion.selection import select


class Net(nn.Module):
    """Every kind of conv that a plan must distinguish."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32))
        self.point = nn.Conv2d(32, 32, 1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.normed = parametrizations.weight_norm(nn.Conv2d(32, 32, 1))
        self.never = nn.Conv2d(4, 4, 3)
        self.again = self.point
        self.tied = nn.Conv2d(32, 32, 1)
        self.tied2 = nn.Conv2d(32, 32, 1)
        self.tied2.weight = self.tied.weight
        self.hooked = nn.Conv2d(32, 32, 1)
        self.hooked.register_forward_hook(lambda *args: None)
        self.head = nn.Conv2d(32, 10, 1)

    def forward(self, x):
        x = self.grouped(self.again(self.point(self.body(self.stem(x)))))
        return self.head(self.hooked(self.tied2(self.tied(self.normed(x)))))


X = small.X[:1]


def layers(model, **options):
    return select(model, inspect_convs(model, X), **options).layers


def reasons(**options):
    return {layer.name: layer.reason for layer in layers(Net(), **options)}


def test_every_conv_has_its_reason():
    assert reasons() == {
        'stem': 'first', 'body.0': '', 'body.2': 'no_gain', 'point': '', 'grouped': '',
        'normed': 'parametrized', 'tied': 'tied', 'tied2': 'tied', 'hooked': 'hooks',
        'head': 'last', 'never': 'unused',
    }  # fmt: skip
    assert set(reasons().values()) - {''} <= set(REASONS)


@pytest.mark.parametrize(
    'pattern, names',
    [
        ('body', ['body.0']),
        ('body.*', ['body.0']),
        ('re:po.*|stem', ['stem', 'point']),
        ('again', ['point']),
        (['stem', 'head'], ['stem', 'head']),
        (nn.Conv2d, ['stem', 'body.0', 'point', 'grouped', 'head']),
        (lambda name, conv: conv.kernel_size == (1, 1), ['point', 'head']),
    ],
)
def test_patterns(pattern, names):
    chosen = reasons(include=pattern)
    assert [name for name, reason in chosen.items() if not reason] == names


def test_exclude_wins_and_settings_follow_the_last_pattern():
    found = {
        layer.name: layer
        for layer in layers(
            Net(), include={'body': {'ratio': 3}, '*': {}, 'point': {'ratio': 4}},
            exclude='grouped', ratio=2,
        )
    }  # fmt: skip
    assert found['grouped'].reason == 'excluded'
    assert found['point'].ratio == 4
    assert found['body.0'].ratio == 2


@pytest.mark.parametrize(
    'options, error, said',
    [
        ({'include': 'bodi'}, ValueError, "near it are .*'body'"),
        ({'exclude': 're:x+'}, ValueError, 'matches no conv of Net'),
        ({'ratio': 0}, ValueError, 'ratio'),
        ({'dw_size': 2}, ValueError, 'dw_size'),
        ({'width': 0.5}, TypeError, 'width'),
        ({'include': {'body': {'ratoi': 2}}}, TypeError, 'ratoi'),
        ({'include': {'body': 4}}, TypeError, r"'body'.*'ratio': 4.* got 4"),
    ],
)
def test_bad_input_is_named(options, error, said):
    with pytest.raises(error, match=said):
        gp.plan(Net(), X, **options)


def test_weights_that_are_computed_are_not_taken_for_tied():
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, bias=False) for _ in range(3))).eval()
    nn.utils.parametrizations.weight_norm(model[1])
    plan = gp.plan(model, torch.randn(1, 16, 9, 9), **small.ALL)
    assert [row.reason for row in plan.layers] == ['', 'parametrized', '']


def test_a_weight_tied_to_any_module_stays():
    model = small.net()
    model.register_parameter('extra', model[3].weight)
    model.add_module('linear', nn.Module())
    model.linear.weight = model[4].weight
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)
    assert [row.reason for row in gp.plan(model, small.X, **small.ALL).layers] == [
        '',
        'tied',
        'tied',
    ]


def test_ratios_that_patterns_give_are_fixed():
    selection = select(Net(), inspect_convs(Net(), X), include={'body': {}, 'point': {'ratio': 3}})
    assert selection.fixed == {'point'}


@pytest.mark.parametrize(('mode', 'reason'), [('zeros', ''), ('reflect', 'padding')])
def test_outputs_smaller_than_the_padding_keep_a_conv(mode, reason):
    conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode=mode)
    model = nn.Sequential(nn.Conv2d(3, 16, 11), conv, nn.Conv2d(16, 3, 1))
    assert layers(model, dw_size=5)[1].reason == reason
