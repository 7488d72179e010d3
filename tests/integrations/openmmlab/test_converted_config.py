"""A converted config refers to its plan and weights by its own folder."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

import torch
from mmengine.config import Config
from torch import nn

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab.converted_config import check_files, write_converted


def test_config_plan_and_weights_are_written_together(tmp_path):
    (tmp_path / 'base.py').write_text("model = dict(type='X', depth=3)")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    plan = gp.plan(net, torch.zeros(1, 3, 9, 9), keep_last=False)
    out, source = tmp_path / 'mine.py', str(tmp_path / 'base.py')
    files = write_converted(out, source, plan, plan.apply(net, inherit=False))
    assert [file.name for file in files] == ['mine.py', 'mine.plan.json', 'mine.pth']
    assert all(file.is_file() for file in files)
    cfg = Config.fromfile(out)
    assert cfg.model.model == {'type': 'X', 'depth': 3}
    assert gp.ConversionPlan.load(cfg.model.plan).rows[1].decision == 'convert'
    assert torch.load(cfg.load_from)['state_dict']
    with pytest.raises(ValueError, match='would replace'):
        check_files(out, source, tmp_path / 'mine.pth')
    check_files(out, source, None)
