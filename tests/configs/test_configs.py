"""Every leaf config loads, dumps, loads again and builds its model; leaves stay short."""

import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab.runner_setup import build_model
from ghost_plugin.utils import optional

ROOT = Path(__file__).parents[2] / 'configs'
LEAVES = [path for path in sorted(ROOT.rglob('*.py')) if '_base_' not in path.parts]
DENSE = {'vgg16_cifar10', 'retinanet_r18_fpn_digits'}  # what a Ghost network is compared with
NAMES = [path.stem for path in LEAVES]
FAST = {
    'ghostnet-050_digits',
    'ghost-vgg16-s2_cifar10',
    'gghost-032_8xb32-90e_in1k',
    'retinanet_ghostnet-100_fpn_bccd',
    'retinanet_r18_fpn_digits',
    'fpn-head_ghostnet-050_digits',
    'td-hm_ghostnet-050_digits',
}


@pytest.mark.parametrize('path', LEAVES, ids=NAMES)
def test_leaf_survives_dump(path, tmp_path):
    cfg = Config.fromfile(path)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    'path',
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem not in FAST)) for p in LEAVES],
)
def test_leaf_builds(path):
    again = Config.fromfile(path)
    if not optional.usable(f'{again.default_scope}.models'):
        pytest.skip(f'needs {again.default_scope}')
    init_default_scope(again.default_scope)
    if 'model_name' in again.model.get('teacher', {}):  # a small one that needs no download
        again.model.teacher.update(model_name='vit_tiny_patch16_224', pretrained=False)
    model = MODELS.build(again.model)
    ghosts = (gp.GhostNet, gp.GGhostRegNet, gp.GhostConv2d)
    assert any(isinstance(m, ghosts) for m in model.modules()) or path.stem in DENSE
    build_optim_wrapper(model, copy.deepcopy(again.optim_wrapper))


@pytest.mark.parametrize(
    'name, side, params, macs',
    [
        ('vgg16_cifar10', 32, 14.991, 313.46),
        ('ghost-vgg16-s2_cifar10', 32, 7.651, 158.70),
        ('ghost-resnet50-s2_8xb32_in1k', 224, 13.954, 2151.02),
        ('ghost-resnet50-s4_8xb32_in1k', 224, 8.152, 1181.94),
    ],
)
def test_ghosted_networks_cost_what_was_published(name, side, params, macs):
    model = build_model(ROOT / f'classification/{name}.py')
    cost = gp.count(model, torch.randn(1, 3, side, side))
    assert (round(cost.params / 1e6, 3), round(cost.macs / 1e6, 2)) == (params, macs)


@pytest.mark.parametrize('path', LEAVES, ids=NAMES)
def test_leaf_is_short_and_says_where_it_comes_from(path):
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 15
    assert lines[0].startswith(('# Recipe: ', '# Ours: '))
