"""Feature maps are adapted to the strides and channels that a detector needs."""

import importlib
import sys

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import torch
from mmengine.registry import MODELS

from ghost_plugin.integrations.openmmlab.feature_adapter import FeatureAdapter

BACKBONE = {'type': 'ghost_plugin.GhostNet', 'width': 0.5, 'out_indices': (2, 4)}
GIVEN = [(20, 8), (80, 32)]


def test_levels_are_made_and_matched():
    strides = [8, 8, 32, 128]
    cfg = {'type': 'ghost_plugin.FeatureAdapter', 'backbone': BACKBONE, 'given': GIVEN}
    plain = MODELS.build({**cfg, 'strides': strides})
    assert isinstance(plain, FeatureAdapter)
    maps = plain(torch.randn(2, 3, 128, 128))
    assert [one.shape[1:] for one in maps] == [(20, 16, 16)] * 2 + [(80, 4, 4), (80, 1, 1)]
    wide = MODELS.build({**cfg, 'strides': strides, 'channels': [20, 9, 80, 7]})
    assert [one.shape[1] for one in wide(torch.randn(2, 3, 64, 64))] == [20, 9, 80, 7]
    nested = MODELS.build({**cfg, 'strides': strides, 'nested': True})
    assert [len(stage) for stage in nested(torch.randn(2, 3, 64, 64))] == [4]


def test_the_old_name_still_builds():
    cfg = {'type': 'ghost_plugin.MatchedLevels', 'backbone': BACKBONE, 'given': GIVEN}
    with pytest.warns(FutureWarning, match=r'use ghost_plugin\.FeatureAdapter'):
        assert type(MODELS.build({**cfg, 'strides': [8, 32]})) is FeatureAdapter
    with pytest.warns(FutureWarning, match='is called'):  # as pickles of version 0.1 import it
        sys.modules.pop('ghost_plugin.integrations.levels', None)
        old = importlib.import_module('ghost_plugin.integrations.levels')
    assert old.MatchedLevels is FeatureAdapter


def test_what_cannot_be_made_is_named():
    with pytest.raises(ValueError, match=r'strides must be among \[8, 32\].*got \[4\]'):
        FeatureAdapter(BACKBONE, GIVEN, [4, 8])
    with pytest.raises(ValueError, match=r'each of the 2 strides.*got 1 channels'):
        FeatureAdapter(BACKBONE, GIVEN, [8, 32], [20])
