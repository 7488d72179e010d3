"""Few calibration images never make a converted network much worse than fewer or none."""

import itertools

import pytest
import torch
from torch import nn

import ghost_plugin as gp

RISE = 1.05
NUMBERS = (0, 1, 2, 4, 8, 16)


class Residual(nn.Module):
    """A basic block."""

    def __init__(self, channels, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def _stem(channels):
    return [nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def _head(channels):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def residual():
    down = [nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*_stem(32), Residual(32), *down, Residual(64), Residual(64), *_head(64))


def grouped():
    return nn.Sequential(*_stem(48), Residual(48, 4), Residual(48, 4), *_head(48))


def biased():
    convs = [(nn.Conv2d(32, 32, 3, 1, 1), nn.LeakyReLU(0.1)) for _ in range(4)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), *itertools.chain(*convs), *_head(32))


def images(number, size, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode='bilinear')
    return 0.7 * smooth + 0.3 * torch.rand(number, 3, size, size, generator=generator)


def trained(build, size):
    """With norms that have seen images."""
    torch.manual_seed(3)
    model = build().train()
    with torch.no_grad():
        for step in range(20):
            model(images(8, size, 100 + step))
    return model.eval()


def errors(model, size, numbers, **options):
    """Relative errors on new images, means of three draws of calibration images, and the largest
    weight of all conversions."""
    new, found, largest = images(16, size, 1), [], 0.0
    plan = gp.plan(model, new[:1])
    for number in numbers:
        draws = []
        for seed in (2, 3, 4):
            given = {'calibration': [images(number, size, seed)], **options} if number else {}
            converted = plan.apply(model, **given)
            with torch.no_grad():
                want = model(new)
                draws.append(((converted(new) - want).norm() / want.norm()).item())
            largest = max(largest, *(p.abs().max().item() for p in converted.parameters()))
        found.append(sum(draws) / len(draws))
    return found, largest


@pytest.mark.parametrize(
    'size', [pytest.param(4, marks=pytest.mark.slow), 8, pytest.param(32, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('build', [residual, grouped, biased])
def test_more_images_are_not_worse(build, size):
    model = trained(build, size)
    dense = max(p.abs().max().item() for p in model.parameters())
    found, largest = errors(model, size, NUMBERS)
    assert all(b <= RISE * a for a, b in itertools.pairwise(found)), found
    assert found[-1] < found[0]
    assert largest < 4 * max(1, dense)


@pytest.mark.parametrize('reconstruct', ['layer', 'block'])
@pytest.mark.parametrize('build', [pytest.param(residual, marks=pytest.mark.slow), biased])
def test_more_images_are_not_worse_for_learning(build, reconstruct):
    model = trained(build, 16)
    found, _ = errors(model, 16, (0, 1, 2, 4, 8), reconstruct=reconstruct, steps=40)
    assert all(b <= RISE * a for a, b in itertools.pairwise(found)), found
