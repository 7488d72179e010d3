"""The command convert for configs: written with a plan, trained with the shown table."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import ghost_plugin as gp

ROOT = Path(__file__).parents[2]
CIFAR = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
DENSE = """
_base_ = '{root}/configs/classification/ghostnet-050_digits.py'
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, base_channels=8, stem_channels=8),
    head=dict(in_channels=64, num_classes=3))
data_preprocessor = dict(num_classes=3)
data = '{data}'
train_dataloader = dict(batch_size=18, dataset=dict(data_root=data))
val_dataloader = dict(dataset=dict(data_root=data))
test_dataloader = dict(dataset=dict(data_root=data))
train_cfg = dict(max_epochs=1, val_interval=1)
"""


def built(config):
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.eval()
    return model


def ghosts(model):
    return [name for name, m in model.named_modules() if isinstance(m, gp.GhostConv2d)]


def test_plan_and_config_are_written_together_and_move_together(ok, tmp_path):
    out = ok('convert', CIFAR, '--size', 32, '--ratio', 4, '-o', tmp_path / 'a/mine.py')
    assert '| whole model |' in out
    moved = (tmp_path / 'a').rename(tmp_path / 'b')
    assert sorted(p.name for p in moved.iterdir()) == ['mine.plan.json', 'mine.py']
    assert len((moved / 'mine.py').read_text().splitlines()) < 15
    cfg = Config.fromfile(moved / 'mine.py')
    dense = Config.fromfile(Config._get_cfg_path(CIFAR, '')[0]).model
    assert all(cfg.model.model[part] == value for part, value in dense.items())
    assert cfg.train_dataloader.dataset.type == 'CIFAR10'
    plan = gp.ConversionPlan.load(moved / 'mine.plan.json')
    model = built(moved / 'mine.py')
    assert ghosts(model) == [row.name for row in plan.layers if row.converts]
    assert gp.count(model, torch.zeros(1, 3, 32, 32)).macs == plan.totals['macs_after']


def test_a_detectors_config_is_converted(ok, tmp_path):
    source = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    out = tmp_path / 'mine.py'
    ok('convert', source, '--size', 64, '--include', 'backbone', '-o', out)
    names = ghosts(built(out))
    assert len(names) > 15 and all(name.startswith('backbone.') for name in names)


def test_a_file_with_a_checkpoint_is_converted_trained_and_tested(ok, environ, pictures, tmp_path):
    dense, out = tmp_path / 'dense.py', tmp_path / 'made/mine.py'
    dense.write_text(DENSE.format(root=ROOT, data=pictures))
    torch.save(built(dense).state_dict(), tmp_path / 'dense.pth')
    shown = ['--data', pictures, '--images', 8, '--size', 64]
    ok('convert', dense, '--checkpoint', tmp_path / 'dense.pth', *shown, '-o', out)
    assert '../dense.py' in out.read_text()
    work = tmp_path / 'work'
    log = ok('train', out, '--work-dir', work)
    assert 'ImageClassifier, converted:' in log and '| whole model |' in log
    assert 'Load checkpoint from' in log and 'mine.pth' in log
    last = (work / 'last_checkpoint').read_text()
    assert 'accuracy/top1' in ok('test', out, last, '--work-dir', tmp_path / 'test')


@pytest.mark.parametrize(
    'args, said',
    [
        (['nowhere.py', '-o', 'x.py'], 'no config at'),
        ([CIFAR, '-o', 'x.json'], 'a config ends in .py'),
        (['timm:resnet18', '-o', 'x.py'], 'is no OpenMMLab config'),
        (['timm:resnet18', '-o', 'x.plan.json'], '--out ends in one of'),
        ([CIFAR, '--num-classes', 3, '-o', 'x.py'], 'says its num_classes itself'),
        ([CIFAR, '--checkpoint', 'x.pth', '-o', 'x.py'], 'would replace'),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(refused, args, said, tmp_path):
    args = [tmp_path / a if str(a).startswith('x.') else a for a in args]
    assert said in refused('convert', *args)
    assert list(tmp_path.iterdir()) == []
