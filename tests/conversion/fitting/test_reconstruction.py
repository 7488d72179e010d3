"""Blocks of a model, and gradient steps towards the original's output."""

import pytest
import torch
from torch import nn

from ghost_plugin.conversion.fitting.paired_forward import ActivationBatch
from ghost_plugin.conversion.fitting.reconstruction import (
    find_blocks,
    reconstruct,
    reconstruct_blocks,
    reconstruct_layers,
    reconstruction_loss,
)
from ghost_plugin.conversion.fitting.sequential import FitTask
from ghost_plugin.conversion.surgery import build_ghosts


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(Block(), Block()), nn.Flatten()).eval()


def test_blocks_hold_several_convs_and_are_no_sequences(model):
    names = ['0', '1.0.conv1', '1.0.conv2', '1.1.conv2']
    assert find_blocks(model, names) == {
        '0': ['0'], '1.0': ['1.0.conv1', '1.0.conv2'], '1.1': ['1.1.conv2'],
    }  # fmt: skip


def test_the_outer_block_counts():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.conv = Block(), nn.Conv2d(8, 8, 1)

    model = nn.Sequential(Outer())
    assert find_blocks(model, ['0.conv', '0.inner.conv1']) == {'0': ['0.conv', '0.inner.conv1']}


def test_a_conv_among_many_stands_alone():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(13))

    assert find_blocks(nn.Sequential(Large()), ['0.convs.3']) == {'0.convs.3': ['0.convs.3']}


def test_steps_lower_the_error_and_keep_the_best_state():
    torch.manual_seed(0)
    student, teacher = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
    x = torch.randn(16, 3, 6, 6)
    given, wanted = ((x,), {}), teacher(x).detach()
    inputs = ActivationBatch([given], [16])
    with torch.no_grad():
        before = float(reconstruction_loss(student, given, wanted))
    after = reconstruct(student, inputs, wanted, steps=60, seed=0)
    assert after < before
    assert all(p.requires_grad and p.grad is None for p in student.parameters())
    with torch.no_grad():
        held = float(reconstruction_loss(student, ((x[14:],), {}), wanted[14:]))
    assert held == pytest.approx(after, rel=1e-4)


def test_a_single_image_is_not_learnt():
    student, x = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 6, 6)
    state = {name: value.clone() for name, value in student.state_dict().items()}
    inputs = ActivationBatch([((x,), {})], [1])
    reconstruct(student, inputs, torch.randn(1, 4, 6, 6), steps=10, seed=0)
    assert all(torch.equal(state[name], value) for name, value in student.state_dict().items())


def test_loss_is_relative_and_takes_nested_outputs():
    class Nested(nn.Module):
        def forward(self, x):
            return {'double': 2 * x, 'count': torch.tensor(3)}

    x = torch.randn(50, 2, 4, 4)
    wanted = {'double': 2 * x + 1, 'count': torch.tensor(3)}
    small = reconstruction_loss(Nested(), ((x,), {}), wanted)
    assert small == pytest.approx(0.25, rel=0.1)
    metric = torch.diag(torch.tensor([2.0, 0.0]))
    unread = 2 * x.clone()
    unread[:, 1] += 1
    assert reconstruction_loss(nn.Identity(), ((2 * x,), {}), unread, metric) == 0


@pytest.mark.parametrize('fit', [reconstruct_layers, reconstruct_blocks])
def test_reconstruction_covers_all_ghosts(model, fit):
    names = ['1.0.conv1', '1.0.conv2', '1.1.conv2']
    settings = {name: {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise'} for name in names}
    norms = {name: name.replace('conv', 'norm') for name in names}
    task = FitTask(model, build_ghosts(model, settings, 0), norms)
    results = fit(task, [torch.randn(12, 3, 6, 6)], steps=4, seed=0)
    assert results.errors.keys() == set(names)
    assert set(results.blocks) == ({'1.0', '1.1'} if fit is reconstruct_blocks else set())
    if results.blocks:
        assert results.blocks['1.0'].conv1 is task.ghosts['1.0.conv1']
        assert isinstance(results.blocks['1.1'].conv1, nn.Conv2d)
        assert model[1][0].conv1 is not results.blocks['1.0'].conv1
