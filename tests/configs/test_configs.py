"""Every leaf config loads, dumps, loads again and builds its model; leaves stay short."""

from pathlib import Path

import pytest

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import ghost_plugin as gp

ROOT = Path(__file__).parents[2] / 'configs'
LEAVES = [path for path in sorted(ROOT.rglob('*.py')) if '_base_' not in path.parts]
NAMES = [path.stem for path in LEAVES]


@pytest.mark.parametrize('path', LEAVES, ids=NAMES)
def test_leaf_survives_dump_and_builds(path, tmp_path):
    cfg = Config.fromfile(path)
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.to_dict() == cfg.to_dict()
    init_default_scope(again.default_scope)
    model = MODELS.build(again.model)
    assert isinstance(model.backbone, gp.GhostNet)


@pytest.mark.parametrize('path', LEAVES, ids=NAMES)
def test_leaf_is_short_and_says_where_it_comes_from(path):
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 15
    assert lines[0].startswith(('# Recipe: ', '# Ours: '))
