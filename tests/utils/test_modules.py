import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ghost_plugin.utils import modules


def test_every_module_gets_its_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with modules.eval_mode(net):
        assert not net[0].training
        assert not torch.is_grad_enabled()
    assert [m.training for m in net] == [True, False]


def test_inputs_are_copied_and_shared_ones_stay_shared():
    x = torch.zeros(2)
    a, (b, word) = modules.clone_tensors((x, [x, 'word']))
    assert a is b
    assert a is not x
    assert word == 'word'
    args, kwargs = modules.as_arguments({'x': x})
    assert args == ()
    assert kwargs['x'] is x
    assert modules.tensors_in({'a': [x, 1], 'b': (x,)}) == [x, x]


def test_calls_never_change_their_inputs():
    calls = []

    def add_in_place(x):
        calls.append(x)
        return x.add_(1)

    x = torch.zeros(2)
    run = modules.preserving_inputs(add_in_place)
    assert run(x).tolist() == run(x).tolist() == [1, 1]
    assert modules.call_model(add_in_place, x).tolist() == [1, 1]
    assert not x.any()
    plain = modules.preserving_inputs(lambda x: x)
    assert plain(x) is not x
    assert plain(x) is x  # copied only until the model is known to be harmless


def test_computed_tensors_are_copied_and_locks_are_named():
    net = nn.Linear(2, 2)
    net.last = net(torch.ones(1, 2))
    copied = modules.deepcopy_detached(net)
    assert torch.equal(copied.last, net.last)
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"'lock'.*cannot be copied|its 'lock'"):
        modules.deepcopy_detached(net)
    assert modules.deepcopy_detached(net, share=True).lock is net.lock


def test_own_forward_passes_ignore_autocast_and_checkpointing():
    net, x = nn.Linear(4, 4), torch.randn(2, 4)
    calls = []
    net.register_forward_hook(lambda *args: calls.append(1))
    with torch.autocast('cpu', torch.bfloat16), modules.plain_forward():
        out = checkpoint(net, x, use_reentrant=False)
        assert out.dtype == torch.float32
        out.sum().backward()
    assert calls == [1]


def test_parameters_learn_again_afterwards():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    with modules.frozen_parameters(net):
        assert not net.weight.requires_grad
    assert [p.requires_grad for p in net.parameters()] == [True, False]


def test_calls_end_behind_the_last_module_that_matters():
    ends, seen = [], []

    class Net(nn.Sequential):
        def forward(self, x, times=1):
            for _ in range(times):
                x = self[1](self[0](x))
            ends.append(times)

    net = Net(nn.Linear(2, 2), nn.ReLU())
    handle = net[0].register_forward_hook(lambda *given: seen.append(1))
    with modules.removing_hooks(handle), modules.partial_calls(net, ['0', '1']) as call:
        call({'x': torch.zeros(1, 2), 'times': 0})  # reaches none
        call({'x': torch.zeros(1, 2), 'times': 2})
        call({'x': torch.zeros(1, 2), 'times': 3})
        call({'x': torch.zeros(1, 2), 'times': 1})
    assert ends == [0, 2, 1]
    assert len(seen) == 2 + 2 + 1
    assert not any(module._forward_hooks for module in net)
