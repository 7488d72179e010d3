import sys
from pathlib import Path

import pytest
import torch

import ghost_plugin as gp

sys.path.insert(0, str(Path(__file__).parents[3] / 'tools/studies'))

from cifar_resnet import CifarResNet

X = torch.randn(1, 3, 32, 32)


@pytest.mark.parametrize(
    'depth, params, ghost', [(20, 269722, 139114), (32, 464154, 238794), (44, 658586, 338474)]
)
def test_costs(depth, params, ghost):
    model = CifarResNet(depth)
    converted, _ = gp.convert(model, X, keep_last=False, inherit=False)
    assert (gp.count(model, X).params, gp.count(converted, X).params) == (params, ghost)


def test_resnet_56_costs_what_was_published():
    model = CifarResNet(56)
    converted, _ = gp.convert(model, X, keep_last=False, inherit=False)
    dense, ghost = gp.count(model, X), gp.count(converted, X)
    assert (round(dense.params / 1e6, 3), round(dense.macs / 1e6, 2)) == (0.853, 125.49)
    assert (round(ghost.params / 1e6, 4), round(ghost.macs / 1e6, 2)) == (0.4382, 65.29)


def test_public_weights_load(shared):
    model = CifarResNet(20)
    report = gp.load_weights(model, shared / 'weights/resnet20-12fca82f.th')
    assert (report.missing, report.unused) == ((), ())


def test_bad_depth():
    with pytest.raises(ValueError, match='6 n'):
        CifarResNet(21)
