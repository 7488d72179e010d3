import gc

import pytest
import torch

import ghost_plugin as gp
from ghost_plugin.layers.permutation import channel_numbers, decode, encode, permute_channels


@pytest.mark.parametrize('channels', [1, 16, 17, 300, 5000])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_digits_survive_any_floating_type_and_averages(channels, dtype):
    order = torch.randperm(channels)
    digits = encode(order, channels).to(dtype)
    assert digits.max() < 16
    assert torch.equal(decode(digits), order)
    assert torch.equal(decode(0.9 * digits + 0.1 * digits), order)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_stays(layout):
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=layout)
    order = torch.tensor([4, 0, 2])
    out = permute_channels(x, encode(order, 5))
    assert torch.equal(out, x[:, order])
    assert out.is_contiguous(memory_format=layout)


def test_rounding_is_accepted_and_other_entries_are_not():
    assert channel_numbers(torch.tensor([0.9999, 0.0]), 2).tolist() == [1, 0]
    for wrong in ([0.5, 1.0], [0.0, 0.0], [0.0, 2.0], [-1.0, 0.0]):
        with pytest.raises(ValueError, match='no channel permutation'):
            channel_numbers(torch.tensor(wrong), 2)


def test_the_returned_tensor_is_followed_while_somebody_has_it():
    conv, x = gp.GhostConv2d(2, 4, 1, permuted=True), torch.randn(1, 2, 3, 3)
    want = conv(x).flip(1)
    order = conv.order
    assert conv.order is order
    order.copy_(order.flip(0))
    del order
    gc.collect()
    assert torch.equal(conv(x), want)
    assert conv._exposed is None
