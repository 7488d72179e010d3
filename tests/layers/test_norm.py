import copy

import pytest
import torch
from torch import nn

from ghost_plugin.layers.norm import PooledBatchNorm2d, pooled_norm


@pytest.mark.parametrize('momentum', [0.1, None])
def test_it_is_a_batch_norm_where_a_batch_has_values(momentum):
    plain = nn.BatchNorm2d(3, momentum=momentum)
    norm = pooled_norm(lambda channels: copy.deepcopy(plain), 3)
    assert type(norm) is PooledBatchNorm2d
    for _ in range(3):
        x = torch.randn(4, 3, 2, 2)
        assert torch.equal(norm(x), plain(x))
    for a, b in zip(norm.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_single_value_uses_and_keeps_the_running_statistics():
    norm = pooled_norm(nn.BatchNorm2d, 3)
    norm.running_mean += 2
    out = norm(torch.full((1, 3, 1, 1), 2.0))
    torch.testing.assert_close(out, torch.zeros(1, 3, 1, 1))
    assert torch.equal(norm.running_mean, torch.full((3,), 2.0))


def test_other_norms_stay():
    assert type(pooled_norm(lambda channels: nn.GroupNorm(1, channels), 4)) is nn.GroupNorm
