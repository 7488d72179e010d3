"""Backbones are run once to learn the channels and strides of their levels."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import logging

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS

from ghost_plugin.integrations.openmmlab.backbone_swap import probing


@MODELS.register_module(force=True)
class ProbedBackbone(BaseModule):
    def __init__(self, tokens=False, stages=0, auxiliary=0):
        super().__init__()
        self.conv, self.tokens = torch.nn.Conv2d(3, 7, 4, stride=4), tokens
        self.stages, self.auxiliary = stages, auxiliary

    def forward(self, x):
        out = self.conv(x)
        if self.stages:
            return [[out, out]] * self.stages
        if self.auxiliary and self.training:
            return [out] * (1 + self.auxiliary)
        return out.flatten(1) if self.tokens else out


@MODELS.register_module(force=True)
class TupleBackbone(ProbedBackbone):
    """Wants a tuple, as CGNet does."""

    def __init__(self, blocks):
        assert isinstance(blocks, tuple)
        super().__init__()


def test_levels_of_ghostnet():
    cfg = {'type': 'ghost_plugin.GhostNet', 'width': 0.5, 'pretrained': 'no/such/file.pth'}
    assert probing.probe_levels(cfg, 'mmengine') == [(12, 4), (20, 8), (56, 16), (80, 32)]


def test_one_level_tokens_and_errors():
    assert probing.probe_levels({'type': ProbedBackbone}, 'mmengine') == [(7, 4)]
    with pytest.raises(ValueError, match='returns tokens or scores'):
        probing.probe_levels({'type': 'ProbedBackbone', 'tokens': True}, 'mmengine')
    levels = probing.probe_levels({'type': 'ProbedBackbone', 'stages': 1}, 'mmengine')
    assert levels == [(7, 4)] * 2
    with pytest.raises(ValueError, match='of 2 networks one behind the other'):
        probing.probe_levels({'type': 'ProbedBackbone', 'stages': 2}, 'mmengine')
    with pytest.raises(ValueError, match=r"cannot build backbone 'ProbedBackbone'.*more"):
        probing.probe_levels({'type': 'ProbedBackbone', 'more': 1}, 'mmengine')


def test_tuples_stay_tuples():
    assert probing.probe_levels({'type': 'TupleBackbone', 'blocks': (1, 2)}, 'mmengine')


@pytest.mark.parametrize('auxiliary', [0, 2])
def test_levels_in_training(auxiliary):
    cfg = {'type': 'ProbedBackbone', 'auxiliary': auxiliary}
    assert probing.levels_in_training(cfg, 'mmengine') == 1 + auxiliary
    assert probing.levels_in_training({'type': 'Unheard'}, 'mmengine') is None


def test_the_cpu_is_used_where_the_meta_device_fails():
    def run(device):
        if device == 'meta':
            raise NotImplementedError
        return device

    assert probing.on_meta_or_cpu(run) == 'cpu'


def test_logging_is_quiet_for_a_while():
    with probing.quiet_logging():
        assert not logging.getLogger('x').isEnabledFor(logging.ERROR)
    assert logging.getLogger('x').isEnabledFor(logging.ERROR)
    assert probing.describe_error(ValueError('a\n  b')) == 'ValueError: a b'
