"""The blood cells' study: one recipe, four backbones, and a table of what was found."""

import json

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import Config

from ghost_plugin.integrations.openmmlab.runner_setup import build_model


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The tool, in a folder of its own."""
    import cells

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['cells.py', '--seeds', '0', '7'])
    return cells


def test_all_detectors_share_the_recipe_and_differ_by_the_backbone(study, tmp_path):
    configs = [Config.fromfile(task.config).to_dict() for task in study.tasks(tmp_path)]
    for config in configs:
        config['model'].pop('backbone')
        config['model']['neck'].pop('in_channels')
    assert all(config == configs[0] for config in configs[1:])


def test_seeds_and_names_choose_the_runs(study, tmp_path):
    chosen = study.tasks(tmp_path, seeds=(3, 5), only='GhostNet')
    assert [Config.fromfile(task.config).randomness.seed for task in chosen] == [3, 5, 3, 5]
    kinds = [Config.fromfile(task.config).model.backbone.type for task in chosen]
    assert kinds == ['ghost_plugin.GhostNet'] * 2 + ['mmpretrain.TIMMBackbone'] * 2


def test_epochs_stretch_the_schedule(study, tmp_path):
    (short,), (longer,) = (study.tasks(tmp_path, only='ours', epochs=n) for n in (None, 40))
    assert short.config != longer.config
    before, after = (Config.fromfile(task.config) for task in (short, longer))
    assert after.train_cfg.max_epochs == after.param_scheduler[-1].T_max == 40
    for config in (before, after):
        config.param_scheduler[-1].T_max = config.train_cfg.max_epochs = 0
    assert before.param_scheduler == after.param_scheduler
    assert before.train_cfg == after.train_cfg


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
    row = {'params': 3_000_000, 'macs': 7e8, 'seconds': 90.0}

    def trained(task, folder):
        reached = 0.2 if folder.name.endswith('seed0') else 0.3
        return {**row, 'metrics': {'coco/bbox_mAP': reached, 'coco/bbox_mAP_50': 0.5}}

    monkeypatch.setattr(study, 'train', trained)
    monkeypatch.setattr(study, 'latencies', lambda tasks: {t.model: 12.5 for t in tasks})
    study.main()
    kept = json.loads((tmp_path / 'work_dirs/study_cells/result.json').read_text())
    assert [len(runs) for runs in kept.values()] == [2] * len(study.BACKBONES)
    assert {run['latency_ms'] for runs in kept.values() for run in runs} == {12.5}
    line = 'ResNet-18 | 0.250 (0.200 to 0.300) | 0.500 (0.500 to 0.500) | 3.00 | 700 | 1.5 | 12.5'
    assert line in capsys.readouterr().out


def test_a_name_that_none_has_is_answered_by_those_there_are(study, tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.tasks(tmp_path, only='VGG')
    assert "'VGG'; the names are: GhostNet 1.0x (ours); timm's" in capsys.readouterr().err


def test_without_the_data_it_says_how_to_make_it(study, capsys):
    with pytest.raises(SystemExit):
        study.main()
    assert 'voc_to_coco.py' in capsys.readouterr().err
