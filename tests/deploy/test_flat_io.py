"""Tensors of calls, by position and by name."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.deploy.flat_io import TensorIO, flatten, unflatten_fn


class Pair(nn.Module):
    """Gives something else when its inputs are swapped or the scale is another."""

    def forward(self, left, right, scale=1.0):
        return left - 3 * right * scale


LEFT, RIGHT = torch.arange(96.0).view(2, 1, 3, 4, 4)
EXAMPLES = [(LEFT, RIGHT), {'left': LEFT, 'right': RIGHT}, {'right': RIGHT, 'left': LEFT}]
CALLS = [
    ((LEFT, RIGHT), {}),
    ((LEFT,), {'right': RIGHT}),
    ((), {'right': RIGHT, 'left': LEFT}),
    ((LEFT, RIGHT, 1.0), {}),
]


@pytest.mark.parametrize('args, kwargs', CALLS)
@pytest.mark.parametrize('example', EXAMPLES)
def test_calls_go_by_the_names_of_forward(example, args, kwargs):
    fast = gp.optimize(Pair().eval(), example, 'fused', rounds=1)
    assert torch.equal(fast(*args, **kwargs), LEFT - 3 * RIGHT)


@pytest.mark.parametrize(
    ('args', 'kwargs', 'said'),
    [
        ((), {'left': LEFT}, "'right' is missing; as in the example .* 'left', 'right'"),
        ((LEFT, RIGHT), {'mask': LEFT}, "'mask' is not known"),
        ((LEFT, RIGHT, 1.0, LEFT), {}, 'argument 3 is not known'),
        ((LEFT,), {'left': LEFT, 'right': RIGHT}, "'left' is given twice, by position and by name"),
        ((LEFT, 5), {}, "'right' must be a tensor, got int"),
        ((LEFT, RIGHT, 2.0), {}, "'scale' is 1.0 in the example and is fixed, got 2.0"),
        ((LEFT, RIGHT, LEFT), {}, "'scale' is 1.0 in the example and is fixed, got tensor"),
    ],
)
def test_calls_unlike_the_example_are_refused(args, kwargs, said):
    fast = gp.optimize(Pair().eval(), (LEFT, RIGHT), 'fused', rounds=1)
    with pytest.raises((TypeError, ValueError), match=said):
        fast(*args, **kwargs)


class Open(nn.Module):
    """Has no argument names."""

    def forward(self, *args, **kwargs):
        return Pair()(*args, **kwargs)


def test_calls_of_a_model_without_names_go_like_the_example():
    fast = gp.optimize(Open().eval(), {'right': RIGHT, 'left': LEFT}, 'fused', rounds=1)
    assert torch.equal(fast(left=LEFT, right=RIGHT), LEFT - 3 * RIGHT)
    with pytest.raises(TypeError, match='argument 0 is not known'):
        fast(LEFT, RIGHT)


def test_leaves_are_nested_again():
    value = {'a': (1, [2]), 'b': 3}
    assert flatten(value) == [1, 2, 3]
    assert unflatten_fn(value)(iter('xyz')) == {'a': ('x', ['y']), 'b': 'z'}


def test_a_wrapped_model_takes_and_returns_tensors():
    io = TensorIO(Pair().eval(), {'right': RIGHT, 'left': LEFT})
    assert torch.equal(io(RIGHT, LEFT)[0], LEFT - 3 * RIGHT)
    assert io.names == ['output']
