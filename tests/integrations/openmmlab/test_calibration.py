"""Calibration batches come from the data of a config, preprocessed as for its own tools."""

import pytest

pytest.importorskip('mmpretrain')

import torch
from mmengine.config import Config

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab import model_from_config
from ghost_plugin.integrations.openmmlab.calibration import config_batches

CONFIG = 'configs/classification/ghostnet-050_digits.py'


@pytest.fixture
def config(pictures, tmp_path):
    """A config of a classifier on a few images."""
    cfg = Config.fromfile(CONFIG)
    loader = dict(batch_size=8, num_workers=2, persistent_workers=True)
    for name in ('train', 'val'):
        cfg[f'{name}_dataloader'].update(loader)
        cfg[f'{name}_dataloader'].dataset.data_root = str(pictures)
    cfg.test_dataloader = None
    cfg.dump(tmp_path / 'digits.py')
    return tmp_path / 'digits.py'


@pytest.mark.parametrize('loader', ['train', 'val'])
def test_as_many_images_as_wanted(config, loader):
    model, _, _ = model_from_config.build(str(config))
    batches = config_batches(config, model, 10, loader)
    assert sum(len(batch['inputs']) for batch in batches) >= 10
    assert len(batches) <= 2
    assert batches[0]['inputs'].shape[1:] == (3, 64, 64)
    assert batches[0]['inputs'].is_floating_point() and batches[0]['mode'] == 'tensor'
    plan = gp.plan(model.eval(), batches[0], macs=0.9, calibration=batches)
    assert plan.totals['macs_after'] <= 0.9 * plan.totals['macs_before']
    assert torch.isfinite(plan.apply(model, calibration=batches)(**batches[0])).all()


def test_a_loader_that_is_not_there_is_named(config, tmp_path):
    model, _, _ = model_from_config.build(str(config))
    with pytest.raises(ValueError, match=r"no test_dataloader; it has those of \['train', 'val'\]"):
        config_batches(config, model, 10, 'test')
    cfg = Config.fromfile(config)
    cfg.val_dataloader.dataset.data_root = str(tmp_path / 'none')
    cfg.dump(config)
    with pytest.raises(FileNotFoundError, match='missing or empty'):
        config_batches(config, model, 10)
