"""The command swap: configs of OpenMMLab with another backbone."""

from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from mmengine.config import Config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    'source, part, channels',
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'neck', [12, 20, 56, 80]),
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'neck', [12, 20, 56, 80]),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', 'head', 480),
    ],
)
def test_swapped_config_inherits_builds_and_fits(ok, source, part, channels, tmp_path):
    out = tmp_path / 'mine.py'
    ok('swap', source, '--width', 0.5, '-o', out)
    cfg = Config.fromfile(out)
    assert cfg.model.backbone.type == 'ghost_plugin.GhostNet'
    assert cfg.model[part].in_channels == channels
    assert len(out.read_text().splitlines()) < 30
    assert [p.name for p in tmp_path.iterdir()] == ['mine.py']


@pytest.mark.parametrize(
    'source, options, said',
    [
        (
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
            ['--out-indices', 2, 3],
            'wants 4 levels',
        ),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', ['--output-stride', 24], '8, 16 or 32'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', ['--width', 0], 'got 0.0'),
        ('mmdet::_base_/datasets/coco_detection.py', [], 'no model.backbone'),
        ('nowhere.py', [], 'no config at'),
        ('mmdet::nowhere.py', [], "no config 'mmdet::nowhere.py'"),
        ('README.md', [], 'cannot read config'),
        (
            'mmpretrain::resnet/resnet18_8xb32_in1k.py',
            ['--backbone', 'ghost_plugin.GostNet'],
            'did you mean',
        ),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', ['--pretrained', 'no.pth'], 'no checkpoint'),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', ['--size', 64], 'are for --smoke-test'),
    ],
)
def test_errors_are_named_and_the_old_file_stays(
    refused, source, options, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    out = tmp_path / 'mine.py'
    out.write_text('x = 1\n')
    assert said in refused('swap', source, *options, '-o', out)
    assert out.read_text() == 'x = 1\n'


def test_keys_that_two_bases_set_are_named(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    source = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    out = tmp_path / 'mine.py'
    status, _, err = cli('swap', source, '--with', 'configs/_base_/schedules/adamw.py', '-o', out)
    assert status == 2 and 'to inherit set optim_wrapper, param_scheduler, test_cfg, ' in err
    assert list(tmp_path.iterdir()) == []
