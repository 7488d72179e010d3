import pytest
import torch
from helpers.divergences import divergence_of_images
from torch import nn

import ghost_plugin as gp

IMAGES = [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
NEW = [torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(9))]


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    net[-1].weight.data *= 200
    return net


def planned(model, limit, **options):
    return gp.plan(model, IMAGES[0][:1], max_divergence=limit, **{'calibration': IMAGES} | options)


@pytest.mark.parametrize('limit', [0.007, 0.01])
def test_the_promise_holds_on_new_images(model, limit):
    plan = planned(model, limit)
    assert plan.divergence['limit'] == limit
    assert 0.3 * limit < plan.divergence['measured'] <= limit
    converted = plan.apply(model, calibration=IMAGES)
    assert divergence_of_images(model, converted, NEW).mean() < 1.2 * limit


def test_a_higher_limit_needs_fewer_multiply_adds(model):
    tight, loose = planned(model, 0.007), planned(model, 0.01)
    assert loose.totals['macs_after'] < tight.totals['macs_after']


def test_it_is_read_again_and_reported(model, tmp_path):
    plan = planned(model, 0.1)
    plan.save(tmp_path / 'plan.json')
    assert gp.ConversionPlan.load(tmp_path / 'plan.json').divergence == plan.divergence
    assert 'at most 0.1 was asked for' in plan.report()
    assert not plan.rebudget(macs=0.9).divergence
    assert 'divergence' not in plan.rebudget(macs=0.9).as_dict()


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'macs': 0.5}, "no other budget, got \\['macs'\\]"),
        ({'calibration': None}, 'no calibration'),
        ({'max_divergence': 0}, 'above 0'),
        ({'max_divergence': float('nan')}, 'above 0'),
        ({'calibration': [IMAGES[0][:8]]}, 'at least 32 calibration images'),
        ({'max_divergence': 1e-12}, 'no conversion was found'),
    ],
)
def test_what_cannot_be_promised_is_refused(model, options, said):
    given = {'max_divergence': 0.1, 'calibration': IMAGES} | options
    with pytest.raises(ValueError, match=said):
        gp.plan(model, IMAGES[0][:1], **given)


def test_detections_cannot_be_measured(model):
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return [{'scores': row[row > 0]} for row in self.net(x)]

    with pytest.raises(ValueError, match='gives none'):
        planned(Detector(), 0.1)
