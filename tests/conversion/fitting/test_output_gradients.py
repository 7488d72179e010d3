"""Gradients of the output, and what they say about the channels of a block."""

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.fitting.output_gradients import (
    UnconnectedError,
    backprop_projections,
    channel_metrics,
    gradients_everywhere,
)
from ghost_plugin.conversion.fitting.reconstruction import reconstruction_loss


@pytest.fixture
def x():
    return torch.randn(8, 3, 12, 12)


def net(block):
    """A block of 16 channels; the rest reads the first 8, three times as much of channel 0."""
    torch.manual_seed(0)
    head = nn.Conv2d(16, 4, 1)
    with torch.no_grad():
        head.weight[:, 8:] = 0
        head.weight[:, 0] *= 3 / head.weight[:, 0].norm()
        head.weight[:, 1] *= 1 / head.weight[:, 1].norm()
    return nn.Sequential(block, head).eval()


def conv():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())


def test_channels_count_by_what_the_output_reads(x):
    metric = channel_metrics(net(conv()), ['0'], [x], seed=0)['0']
    assert metric.shape == (16, 16)
    torch.testing.assert_close(metric, metric.T)
    torch.testing.assert_close(metric.diagonal().mean(), torch.tensor(1.0))
    assert metric[8:].diagonal(8).max() < 0.05 < metric[:8].diagonal().min()  # few images
    assert torch.linalg.eigvalsh(metric).min() > -1e-5
    assert 5 < metric[0, 0] / metric[1, 1] < 14  # 9 but for the draw of projections


def test_same_seed_same_metric_and_nothing_else_changes(x):
    model = net(conv()).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dice = torch.random.get_rng_state()
    first, again = (channel_metrics(model, ['0'], [x], seed=1)['0'] for _ in range(2))
    assert torch.equal(first, again) and torch.equal(dice, torch.random.get_rng_state())
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_an_error_that_the_output_does_not_read_counts_little(x):
    block = conv().eval()
    metric = channel_metrics(net(block), ['0'], [x], seed=0)['0']
    wanted = block(x).detach()
    unread, read = wanted.clone(), wanted.clone()
    unread[:, 8:] += 1
    read[:, 0] += 1
    given = ((x,), {})
    assert reconstruction_loss(block, given, unread, metric) < 0.2 * reconstruction_loss(
        block, given, unread
    )
    assert reconstruction_loss(block, given, read, metric) > reconstruction_loss(block, given, read)


def test_no_metric_where_there_is_nothing_to_measure(x):
    class Picks(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return 2 * x

    class Forward(nn.Module):
        def forward(self, x):
            return OneWay.apply(x)

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    assert channel_metrics(nn.Sequential(conv(), Picks()), ['0'], [x], seed=0) == {}
    assert channel_metrics(nn.Sequential(conv(), Forward()), ['0'], [x], seed=0) == {}
    assert channel_metrics(nn.Sequential(conv(), Pair()), ['1'], [x], seed=0) == {}
    flat = nn.Sequential(nn.Flatten(), nn.Linear(432, 5))
    assert channel_metrics(nn.Sequential(flat, nn.Linear(5, 2)), ['0'], [x], seed=0) == {}


class Parts(nn.Module):
    """A part without gradients in front of one that has them."""

    def __init__(self, detached):
        super().__init__()
        self.front, self.back = (nn.Conv2d(i, 16, 3, padding=1) for i in (3, 16))
        self.detached = detached

    def forward(self, x):
        with torch.set_grad_enabled(self.detached):
            x = self.front(x)
        return self.back(x.detach() if self.detached else x)


def test_a_part_that_runs_without_gradients_is_scored(x):
    model = Parts(False).eval()
    plan = gp.plan(model, x, macs=0.8, dw_size=3, keep_first=False, keep_last=False)
    assert all(row.scores['4'] > row.scores['2'] > 0 for row in plan.layers)
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        again = gp.plan(model, x, macs=0.8, dw_size=3, keep_first=False, keep_last=False)
    assert again.layers == plan.layers


def test_what_the_output_does_not_depend_on_is_not_taken_for_harmless(x):
    plan = gp.plan(Parts(True).eval(), x, macs=0.8, keep_first=False, keep_last=False)
    assert [row.reason for row in plan.layers] == ['no_gradient', '']
    assert 'no_gradient: the output does not depend on it' in plan.report()


def test_probes_get_gradients_of_random_projections():
    torch.manual_seed(0)
    model, found = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), []

    def probe(module, inputs, output):
        assert inputs[0].shape == (5, 3) and output.shape == (5, 4)
        return found.append

    backprop_projections(model, {'0': probe}, [torch.randn(5, 3)], 3)
    assert [gradient.shape for gradient in found] == [(5, 4)] * 3
    rows = torch.cat(found).double()
    weight = model[1].weight.detach().double()
    rest = rows - torch.linalg.lstsq(weight.T, rows.T).solution.T @ weight
    assert rest.abs().max() < 1e-5  # all of them combine rows of the last weight
    with pytest.raises(UnconnectedError):
        backprop_projections(nn.Sequential(nn.Flatten(0)), {}, [torch.zeros(2, 2)], 1)


@pytest.mark.parametrize('enabled', [True, False])
def test_gradients_are_recorded_everywhere_and_switched_back(enabled):
    model = Parts(False)
    with torch.set_grad_enabled(enabled):
        with gradients_everywhere(model):
            model(torch.zeros(1, 3, 4, 4)).sum().backward()
        assert torch.is_grad_enabled() == enabled
    assert all(p.grad is not None for p in model.parameters())
    assert not any(part._forward_pre_hooks for part in model.modules())
