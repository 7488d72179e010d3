"""The blood cells' study: one recipe, four backbones, and a table of what was found."""

import json

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import Config

from ghost_plugin.integrations.runs import build_model


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The tool, in a folder of its own."""
    import study_cells

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['study_cells.py'])
    return study_cells


def test_all_detectors_share_the_recipe_and_differ_by_the_backbone(study, tmp_path):
    configs = [Config.fromfile(task.config).to_dict() for task in study.tasks(tmp_path)]
    for config in configs:
        config['model'].pop('backbone')
        config['model']['neck'].pop('in_channels')
    assert all(config == configs[0] for config in configs[1:])


def test_no_detector_is_frozen_and_all_run(study, tmp_path):
    for task in study.tasks(tmp_path):
        model = build_model(task.config).train()
        assert all(parameter.requires_grad for parameter in model.backbone.parameters())
        norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms and all(norm.training for norm in norms)
        with torch.no_grad():
            scores, _ = model(torch.randn(1, 3, 64, 64), mode='tensor')
        assert [level.shape[-1] for level in scores] == [8, 4, 2, 1, 1]


def test_table(study, tmp_path, monkeypatch, capsys):
    (tmp_path / study.DATA).mkdir(parents=True)
    metrics = {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5}
    row = {'metrics': metrics, 'params': 3_000_000, 'macs': 7e8, 'seconds': 90.0}
    monkeypatch.setattr(study, 'train', lambda task, folder: dict(row))
    monkeypatch.setattr(study, 'latencies', lambda tasks: [12.5] * len(tasks))
    study.main()
    kept = json.loads((tmp_path / 'work_dirs/study_cells/result.json').read_text())
    assert len(kept) == 1 + len(study.OTHERS)
    assert 'ResNet-18 | 0.250 | 0.500 | 3.00 | 700 | 1.5 | 12.5' in capsys.readouterr().out


def test_without_the_data_it_says_how_to_make_it(study, capsys):
    with pytest.raises(SystemExit):
        study.main()
    assert 'voc_to_coco.py' in capsys.readouterr().err
