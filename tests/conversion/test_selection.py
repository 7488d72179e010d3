import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ghost_plugin as gp
from ghost_plugin.conversion.inspection import inspect_convs
from ghost_plugin.conversion.reasons import REASONS
from ghost_plugin.conversion.selection import select


class Net(nn.Module):
    """Every kind of conv that a plan must tell apart."""

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


X = torch.randn(1, 3, 12, 12)


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


FINISHES = {
    'sigmoid': lambda maps: maps.sigmoid(),
    'sigmoid_': lambda maps: maps.sigmoid_(),
    'softmax': lambda maps: maps.softmax(1),
    'exp': lambda maps: maps.exp(),
    'permute': lambda maps: maps.permute(0, 2, 3, 1).reshape(1, -1, 4).sigmoid(),
    'flatten': lambda maps: maps.flatten(2).transpose(1, 2),
    'arithmetic': lambda maps: 2 * maps - torch.log(1 + maps.exp().clamp(max=9)),
    'resized': lambda maps: nn.functional.interpolate(maps, size=(20, 20), mode='bilinear'),
    'double': lambda maps: maps.double(),
}


class Finished(nn.Module):
    """A head that does something to its maps before it returns them."""

    def __init__(self, finish):
        super().__init__()
        self.finish = finish
        self.stem, self.body, self.head = (nn.Conv2d(n, 16, 3) for n in (3, 16, 16))
        self.other = nn.Conv2d(16, 16, 3)

    def forward(self, x):
        x = self.body(self.stem(x))
        return self.finish(self.head(x)), self.other(x)


@pytest.mark.parametrize('finish', FINISHES)
def test_convs_whose_maps_are_finished_before_they_are_returned_make_the_output(finish):
    said = {layer.name: layer.reason for layer in layers(Finished(FINISHES[finish]))}
    assert said == {'stem': 'first', 'body': '', 'head': 'last', 'other': 'last'}


class Around(nn.Module):
    """Gives its input and what the last conv adds to it, scaled; or the sum of a trunk."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.scale = trunk, nn.Parameter(torch.ones(1))
        self.stem, self.body, self.head = (nn.Conv2d(n, 3, 3, padding=1) for n in (3, 3, 3))

    def forward(self, x):
        y = self.stem(x).relu()
        y = y + self.body(y)
        return y + self.head(y) if self.trunk else self.scale * self.head(y) + x


@pytest.mark.parametrize(('trunk', 'last'), [(False, True), (True, False)])
def test_what_is_added_to_the_input_is_output_and_what_joins_other_maps_is_not(trunk, last):
    assert [(f.name, f.makes_output) for f in inspect_convs(Around(trunk), X)] == [
        ('stem', False),
        ('body', False),
        ('head', last),
    ]


def test_convs_stand_in_the_order_of_their_calls():
    found = inspect_convs(Net(), X)
    assert [f.name for f in found][:3] == ['stem', 'body.0', 'body.2']
    point = next(f for f in found if f.name == 'point')
    assert (point.calls, point.aliases, point.pixels) == (2, ('again',), 2 * 36)


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
