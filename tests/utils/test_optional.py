"""The package without its friends: each case in a process of its own."""

import subprocess
import sys
import textwrap

import pytest

ALL = ('timm', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'scipy')
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise {error}('no ' + name)
sys.meta_path.insert(0, Block())
import torch
import ghost_plugin as gp
assert gp.GhostNet(0.5)(torch.randn(2, 3, 32, 32))[-1].shape[1] == 80
"""


def run(blocked, code, error='ImportError'):
    source = BLOCK.format(blocked=set(blocked), error=error) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, '-c', source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TIMM = """
    import timm
    net = timm.create_model('ghostnet_plugin_050', num_classes=3)
    assert net(torch.randn(2, 3, 32, 32)).shape[1] == 3
"""
OPENMMLAB = """
    from mmengine.registry import MODELS
    net = MODELS.build(dict(type='ghost_plugin.GhostNet', width=0.5, frozen_stages=1))
    assert net.train() is net
"""
SAYS = """
    for module in ('ghost_plugin.integrations.timm.ghostnet_plugin', 'ghost_plugin.registry'):
        try:
            __import__(module)
        except ImportError as error:
            assert 'pip install' in str(error), error
        else:
            raise AssertionError(module)
"""


@pytest.mark.parametrize(
    'error',
    [
        'RuntimeError',
        *(pytest.param(e, marks=pytest.mark.slow) for e in ('ImportError', 'OSError')),
    ],
)
def test_core_works_without_any_and_with_broken_ones(error):
    run(ALL, SAYS, error)


def test_the_command_line_starts_without_any_and_images_ask_for_timm():
    code = """
        import ghost_plugin.cli.convert
        from ghost_plugin.training.loader import ImageLoader
        try:
            ImageLoader([], None)
        except ImportError as error:
            assert "pip install 'ghost_plugin[timm]'" in str(error), error
        else:
            raise AssertionError
    """
    run(ALL, code)


def test_timm_alone():
    pytest.importorskip('timm')
    run(set(ALL) - {'timm'}, TIMM)


def test_openmmlab_alone():
    pytest.importorskip('mmengine')
    pytest.importorskip('mmcv')
    run(set(ALL) - {'mmengine', 'mmcv'}, OPENMMLAB)
