import copy
import logging

import pytest
import torch
from helpers.divergences import divergence_of_images
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.fitting.network import reconstruct_network
from ghost_plugin.conversion.progress import silent


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def disturbed(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * parameter.std() * torch.randn_like(parameter)
    return other


IMAGES = [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def learn(original, converted, steps=30, batches=IMAGES):
    reconstruct_network(original, converted, batches, steps=steps, seed=0, report=silent)


def test_the_network_learns_the_outputs_of_other_images():
    model = net()
    model[-1].weight.data *= 20  # predictions that differ
    other = disturbed(model)
    new = [torch.randn(64, 3, 16, 16)]
    before = divergence_of_images(model, other, new).mean()
    learn(model, other)
    assert divergence_of_images(model, other, new).mean() < 0.7 * before


def test_the_original_and_flags_stay():
    model, other = net(), disturbed(net())
    state = copy.deepcopy(model.state_dict())
    other[0].weight.requires_grad_(False)
    norms = {name: value.clone() for name, value in other.named_buffers()}
    learn(model, other, steps=6)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not other[0].weight.requires_grad
    assert other[3].weight.requires_grad
    assert all(parameter.grad is None for parameter in other.parameters())
    assert all(torch.equal(value, norms[name]) for name, value in other.named_buffers())


def test_it_never_ends_worse_on_held_back_images():
    """An exact copy cannot gain but rounding."""
    model = net()
    other = copy.deepcopy(model)
    learn(model, other, steps=12)
    assert divergence_of_images(model, other, IMAGES).mean() < 1e-6


def test_an_interrupted_stage_leaves_the_best_state():
    model, other = net(), disturbed(net())
    before = copy.deepcopy(other.state_dict())

    def stop(stage, done, total):
        if done == 2:  # before the first comparison
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct_network(model, other, IMAGES, steps=30, seed=0, report=stop)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_detections_are_not_compared(caplog):
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return [{'scores': row[row > 0]} for row in self.net(x)]

    model, other = Detector(), Detector()
    with caplog.at_level(logging.WARNING):
        learn(model, other)
    assert 'cannot be compared' in caplog.text


def test_a_conversion_whose_whole_network_learns():
    model = net()
    model[-1].weight.data *= 20
    plan = gp.plan(model, IMAGES[0][:1], ratio=2)
    new = [torch.randn(64, 3, 16, 16)]
    found = {}
    for way in ('block', 'network'):
        converted = plan.apply(model, calibration=IMAGES, reconstruct=way, steps=20)
        found[way] = float(divergence_of_images(model, converted, new).mean())
    assert found['network'] < found['block']
    again = plan.apply(model, calibration=IMAGES, reconstruct='network', steps=20)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, converted.state_dict()[name], rtol=0, atol=0)


def test_in_place_it_gives_the_same():
    model = net()
    plan = gp.plan(model, IMAGES[0][:1], ratio=2)
    options = {'calibration': IMAGES, 'reconstruct': 'network', 'steps': 6}
    converted = plan.apply(model, **options)
    changed = plan.apply(model, inplace=True, optimizers=[], **options)
    assert changed is model
    for name, value in changed.state_dict().items():
        torch.testing.assert_close(value, converted.state_dict()[name], rtol=0, atol=0)
