"""The detector's study: the config that distils into what convert.py wrote."""

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import Config

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab.runner_setup import build_model


@pytest.mark.parametrize('data', ['digits', 'cells'])
def test_the_distilled_config_learns_from_the_network_that_was_converted(
    data, in_process, tmp_path
):
    import convert_detector as study

    dense_config = tmp_path / 'dense.py'
    dense_config.write_text(study.CASES[data].config)
    options = ('--ratio', 2, '--include', 'backbone', '--size', 64)
    status, _, error = in_process(
        'convert', 'config', dense_config, '-o', tmp_path / 'converted.py', *options
    )
    assert status == 0, error
    teacher = tmp_path / 'teacher.pth'
    dense = build_model(dense_config)
    torch.save({'state_dict': dense.state_dict()}, teacher)
    config = tmp_path / 'distilled.py'
    config.write_text(study.DISTILLED.format(base='./converted.py', teacher=str(teacher)))
    assert len(config.read_text().splitlines()) <= 15
    assert Config.fromfile(config).train_cfg.max_epochs == 1
    model = build_model(config)
    assert any(isinstance(m, gp.GhostConv2d) for m in model.modules())
    master = model.teacher.content
    assert not any(isinstance(m, gp.GhostConv2d) for m in master.modules())
    wanted = dense.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in master.state_dict().items())
