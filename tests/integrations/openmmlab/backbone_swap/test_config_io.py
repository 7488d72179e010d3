"""Configs are read by path or package name, and never written over files of the user."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from ghost_plugin.integrations.openmmlab.backbone_swap import (
    config_io,
    load_config,
    refuse_python_style,
    resolve,
    write_config,
)
from ghost_plugin.integrations.openmmlab.backbone_swap.config_io import base_name, made_by


def test_python_style_is_refused(tmp_path):
    path = tmp_path / 'lazy.py'
    path.write_text(
        'from mmengine.config import read_base\nwith read_base():\n    pass\nmodel = {}'
    )
    with pytest.raises(ValueError, match='Python style'):
        refuse_python_style(path)


@pytest.mark.parametrize(
    'name, said',
    [
        ('child.py', 'would inherit itself'),
        ('base.py', 'would inherit itself'),
        ('foreign.py', 'not made by this tool'),
        ('out.yaml', 'a config ends in .py'),
        ('out', 'a config ends in .py'),
    ],
)
def test_configs_of_the_user_are_never_written_over(name, said, tmp_path):
    given = {'base.py': 'x = 1', 'child.py': "_base_ = 'base.py'", 'foreign.py': 'y = 1'}
    for file, text in given.items():
        (tmp_path / file).write_text(text)
    with pytest.raises((ValueError, FileExistsError), match=said):
        write_config(tmp_path / name, [str(tmp_path / 'child.py')], {'z': 1})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == given


def test_what_the_tool_made_it_makes_anew(tmp_path):
    (tmp_path / 'base.py').write_text('x = 1')
    for value in (1, 2):
        made = write_config(tmp_path / 'a/mine.py', [str(tmp_path / 'base.py')], {'x': value})
        assert made.x == value
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['mine.py']


def test_a_config_that_is_not_accepted_is_not_written(tmp_path):
    (tmp_path / 'base.py').write_text('x = 1')

    def refuse(cfg):
        assert cfg.x == 2
        raise ValueError('no')

    with pytest.raises(ValueError, match='no'):
        write_config(tmp_path / 'a.py', [str(tmp_path / 'base.py')], {'x': 2}, accept=refuse)
    assert [path.name for path in tmp_path.iterdir()] == ['base.py']


def test_names(tmp_path):
    assert base_name('mmdet::a/b.py', tmp_path) == 'mmdet::a/b.py'
    assert base_name(str(tmp_path / 'a.py'), tmp_path / 'sub') == '../a.py'
    assert made_by('me', 'a.py') == '# Made by me from a.py'
    assert resolve('a.py') == 'a.py'
    with pytest.raises(FileNotFoundError, match="no config 'mmdet::none'"):
        resolve('mmdet::none')
    (tmp_path / 'a.py').write_text('x = 1')
    assert load_config(tmp_path / 'a.py').x == 1


def test_configs_of_a_fork_are_named_by_their_path(monkeypatch, tmp_path):
    pytest.importorskip('mmpretrain')
    name = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    assert base_name(name, tmp_path) == name
    monkeypatch.setattr(config_io, 'FORKS', ['mmpretrain'])
    path = base_name(name, tmp_path)
    assert '::' not in path and (tmp_path / path).resolve().samefile(resolve(name))
