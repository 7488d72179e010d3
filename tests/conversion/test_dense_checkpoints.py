"""Dense weights that load into converted models."""

import pytest
import torch
from helpers.small import ALL, X, net
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.dense_checkpoints import convert_dense_weights, dense_like


def test_dense_weights_become_those_of_a_conversion_without_data():
    model = net()
    converted, plan = gp.convert(model, X, **ALL)
    fresh = plan.apply(model, inherit=False)
    fresh.load_state_dict(model.state_dict())
    for name, tensor in converted.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], tensor)


def test_only_the_conv_itself_is_replaced_in_a_state_dict():
    model = net()
    ghost = gp.convert(model, X, **ALL)[0][3]
    before = {name: tensor.clone() for name, tensor in ghost.state_dict().items()}
    weights = {'3.weight': model[3].weight.data, '3.bias': model[3].bias.data, '4.bias': X}
    convert_dense_weights(ghost, weights, '3.')
    assert set(weights) == {'4.bias', *(f'3.{name}' for name in before)}
    assert all(torch.equal(ghost.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ('weight', 'bias', 'said'),
    [
        ((16, 16, 1, 1), True, r'weight \(16, 16, 1, 1\) with bias'),
        ((16, 16, 3, 3), False, 'without'),
    ],
)
def test_weights_of_another_conv_are_refused(weight, bias, said):
    ghost = gp.convert(net(), X, **ALL)[0][3]
    weights = {'3.weight': torch.zeros(weight), **({'3.bias': torch.zeros(16)} if bias else {})}
    with pytest.raises(ValueError, match=f"'3': the dense .*{said}"):
        convert_dense_weights(ghost, weights, '3.')


def test_the_dense_conv_has_the_options_of_the_ghost():
    ghost = gp.GhostConv2d(4, 8, 3, 2, 1, 1, 2, padding_mode='reflect', permuted=True)
    conv = dense_like(ghost, torch.ones(8, 2, 3, 3), torch.zeros(8))
    like = nn.Conv2d(4, 8, 3, 2, 1, 1, 2, padding_mode='reflect')
    assert repr(conv) == repr(like)
    assert (conv.weight == 1).all() and (conv.bias == 0).all()
