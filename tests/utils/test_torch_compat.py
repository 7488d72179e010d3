import torch

from ghost_plugin.utils import torch_compat


def test_autocast_is_seen_and_switched_off():
    assert torch_compat.autocasts() == []
    with torch.autocast('cpu', torch.bfloat16):
        assert torch_compat.autocasts() == ['cpu']
        with torch_compat.full_precision():
            assert torch_compat.autocasts() == []
    assert not torch_compat.is_compiling()
