"""Observation of one forward pass: order, outputs, norms, and other readers of a conv."""

import pytest
import torch
from helpers.small import ALL, X
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.inspection import inspect_convs

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
def test_operations_before_the_return_do_not_hide_who_makes_the_output(finish):
    records = inspect_convs(Finished(FINISHES[finish]), X)
    assert [r.name for r in records if r.makes_output] == ['head', 'other']


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
def test_a_sum_with_the_input_is_output_and_a_sum_of_convs_is_not(trunk, last):
    assert [(f.name, f.makes_output) for f in inspect_convs(Around(trunk), X)] == [
        ('stem', False),
        ('body', False),
        ('head', last),
    ]


class Called(nn.Module):
    """A conv under two names that runs twice on several sizes, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.never = nn.Conv2d(4, 4, 3)
        self.head = nn.Conv2d(16, 4, 1)
        self.first = nn.Conv2d(3, 16, 3)
        self.twice = nn.Conv2d(16, 16, 3)
        self.again = self.twice

    def forward(self, x):
        return self.head(self.again(self.twice(self.first(x))))


def test_records_stand_in_the_order_of_the_first_calls():
    records = inspect_convs(Called(), X)
    assert [(r.name, r.calls) for r in records] == [
        ('first', 1), ('twice', 2), ('head', 1), ('never', 0)
    ]  # fmt: skip
    twice = records[1]
    assert twice.aliases == ('again',)
    assert (twice.pixels, twice.min_output_size) == (8 * 8 + 6 * 6, 6)  # of one image of two


def test_the_model_is_left_as_it_was():
    model = Called().train()
    parts = {name: dict(vars(module)) for name, module in model.named_modules()}
    inspect_convs(model, X)
    for name, module in model.named_modules():
        assert vars(module) == parts[name]
        assert type(module._parameters) is type(parts[name]['_parameters'])


def test_a_parameter_that_is_replaced_meanwhile_stays():
    class Writes(Called):
        def forward(self, x):
            self.first.weight = nn.Parameter(torch.zeros_like(self.first.weight))
            return super().forward(x)

    model = Writes()
    inspect_convs(model, X)
    assert not model.first.weight.any()


@pytest.mark.parametrize(
    ('wrapped', 'error', 'said'),
    [
        (lambda: 'resnet18', TypeError, 'build it first'),
        (lambda: torch.jit.script(nn.Conv2d(3, 4, 3)), TypeError, 'before it was scripted'),
        (lambda: nn.LazyConv2d(4, 3), ValueError, 'call the model once'),
    ],
)
def test_models_that_cannot_be_converted_are_refused(wrapped, error, said):
    with pytest.raises(error, match=said):
        inspect_convs(wrapped(), X)


class Holder(nn.Module):
    """Calls a conv through something that is no module."""

    def __init__(self, hold):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3)
        self.held = hold(self.conv)

    def forward(self, x):
        held = self.held
        held = held['conv'] if isinstance(held, dict) else held[0]
        return held(x)


@pytest.mark.parametrize('hold', [lambda c: [c], lambda c: (c,), lambda c: {'conv': c}])
def test_a_conv_held_outside_of_the_modules_is_not_lost(hold):
    model, x = Holder(hold).eval(), torch.randn(2, 16, 9, 9)
    assert [record.referenced_outside_modules for record in inspect_convs(model, x)] == [True]


class Reader(nn.Module):
    """Somebody else looks at a tensor of a conv."""

    def __init__(self, read):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.read = read

    def forward(self, x):
        return self.other(self.read(self.conv, x))


@pytest.mark.parametrize(
    'read',
    [
        lambda conv, x: nn.functional.conv2d(x, conv.weight.abs(), conv.bias),
        lambda conv, x: conv(x.to(conv.weight.dtype)),
        lambda conv, x: conv(x) + conv.bias.mean(),
    ],
    ids=['weight', 'dtype', 'bias'],
)
def test_a_conv_whose_tensors_are_read_elsewhere_stays(read):
    records = {record.name: record for record in inspect_convs(Reader(read), X)}
    assert records['conv'].weight_accessed
    assert not records['other'].weight_accessed
    converted, _ = gp.convert(Reader(read), X, **ALL)
    assert converted(X).shape == (2, 16, 8, 8)


class Behind(nn.Module):
    """A conv, and a norm that gets its maps in some way."""

    def __init__(self, between, also):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.between, self.also = between, also

    def forward(self, x):
        maps = self.conv(x)
        return self.norm(self.between(maps)) + self.also(maps)


@pytest.mark.parametrize(
    'between, also, norm',
    [
        (nn.Identity(), lambda y: 0, 'norm'),
        (nn.ReLU(), lambda y: 0, ''),
        (nn.ReLU(inplace=True), lambda y: 0, ''),
        (nn.Identity(), lambda y: y, ''),
        (nn.Identity(), lambda y: y.mean(), ''),
    ],
    ids=['alone', 'relu', 'relu in place', 'added', 'averaged'],
)
def test_a_norm_takes_a_shift_only_of_maps_that_nobody_else_gets(between, also, norm):
    assert inspect_convs(Behind(between, also).eval(), X)[0].norm == norm


class Listed(nn.Module):
    """Reads a conv's weight, which a list holds, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.weights = [self.second.weight]

    def forward(self, x):
        return self.second(self.first(x)) * sum(w.square().mean() for w in self.weights)


def test_a_weight_in_a_list_stays_with_its_conv():
    model = Listed()
    converted, plan = gp.convert(model, torch.randn(2, 16, 9, 9), **ALL)
    assert [row.reason for row in plan.layers] == ['', 'held']
    assert converted.weights[0] is converted.second.weight
