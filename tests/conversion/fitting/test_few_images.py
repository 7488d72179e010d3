"""A conversion goes without images that it hardly gains from, and says so."""

import logging

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion.fitting.few_images import few_images, misled
from ghost_plugin.conversion.fitting.sequential import FitResults, FitTask, fit_from_weights
from ghost_plugin.conversion.surgery import build_ghosts


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1),
    ).eval()  # fmt: skip


def converted(model, caplog, images):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        made, _ = gp.convert(model, images[:1], calibration=[images])
    return made, 'too few calibration images' in caplog.text


def fits(model):
    """Tasks with fresh weights, and with those that the dense kernels alone give."""
    settings = {'3': {'ratio': 2, 'dw_size': 3, 'cheap': 'depthwise'}}
    fresh, plain = (
        FitTask(model, build_ghosts(model, settings, 0), norms={'3': '4'}) for _ in range(2)
    )
    fit_from_weights(plain)
    return fresh, plain


def test_the_worse_fit_gives_way(model):
    fresh, plain = fits(model)
    batches = [torch.randn(4, 3, 8, 8)]
    assert misled(fresh, FitResults(), plain, batches)
    assert not misled(plain, FitResults(), fresh, batches)
    assert misled(plain, FitResults(), plain, batches)  # no gain


def test_a_conversion_without_its_images_is_that_without_any(model, caplog, monkeypatch):
    monkeypatch.setattr('ghost_plugin.conversion.apply.misled', lambda *given: True)
    images = torch.randn(2, 3, 8, 8)
    made, warned = converted(model, caplog, images)
    plain, _ = gp.convert(model, images)
    assert warned
    torch.testing.assert_close(made.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(('number', 'few'), [(1, True), (32, True), (33, False)])
def test_only_few_images_are_doubted(number, few):
    assert few_images([torch.zeros(number, 3, 4, 4)]) == few


def test_images_that_help_are_used(model, caplog):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 2, 2, generator=generator)
    images = nn.functional.interpolate(coarse, (16, 16), mode='bilinear')
    made, warned = converted(model, caplog, images)
    plain, _ = gp.convert(model, images[:1])
    assert not warned
    with torch.no_grad():
        errors = [(net(images) - model(images)).norm() for net in (made, plain)]
    assert errors[0] < 0.9 * errors[1]


def test_nothing_is_doubted_where_nothing_is_lost(model, caplog, redundant):
    redundant(model[3])
    _, warned = converted(model, caplog, torch.randn(2, 3, 8, 8))
    assert not warned
