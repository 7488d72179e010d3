import importlib
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.utils.old_paths import OLD_PATHS

# Names in pickles of version 0.1, by their present names.
OLD_NAMES = {
    b'cghost_plugin.conversion.dense_checkpoints\nconvert_dense_weights': (
        b'cghost_plugin.conversion.loading\nadopt'
    ),
    b'cghost_plugin.graph.folded_ghost': b'cghost_plugin.layers.folded',
    b'cghost_plugin.layers.bn_folding': b'cghost_plugin.layers.folding',
    b'cghost_plugin.layers.parallel_branches': b'cghost_plugin.layers.branches',
    b'cghost_plugin.layers.cheap_ops': b'cghost_plugin.layers.cheap',
    b'cghost_plugin.backbones.common': b'cghost_plugin.backbones.parts',
    b'cghost_plugin.backbones.g_ghost_regnet': b'cghost_plugin.backbones.g_ghost',
    b'Vghosts_per_group\n': b'Vcopies\n',
    b'Vgroup_size\n': b'Vnone\n',
    b'Vnum_ghosted\n': b'Vserved\n',
    b'Vneeds_crop\n': b'Vcut\n',
    b'Vconvert_dense_weights\n': b'Vadopt\n',
    b'Vdense_name\n': b'Vplace\n',
}


def converted():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).eval()
    options = {'keep_first': False, 'keep_last': False}
    return gp.convert(net, torch.randn(1, 3, 9, 9), **options)[0]


NETS = {
    'converted': converted,
    'fused': lambda: gp.fuse(converted()),
    'branches': lambda: gp.GhostNetV3(0.35, out_indices=(0,)).eval(),
    'shift': lambda: gp.GhostNet(0.35, out_indices=(0,), cheap='shift').eval(),
    'gghost': lambda: gp.GGhostRegNet('002', out_indices=(1,)).eval(),
}


@pytest.mark.parametrize('name', NETS)
def test_pickles_of_version_0_1_load(name):
    net, x = NETS[name](), torch.randn(1, 3, 16, 16)
    data = pickle.dumps(net, protocol=0)
    for new, old in OLD_NAMES.items():
        data = data.replace(new, old)
    loaded = pickle.loads(data)
    for got, want in zip(loaded(x), net(x), strict=True):
        assert torch.equal(got, want)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3)).state_dict()
    if name == 'converted':  # it still converts dense weights while they load
        assert not loaded.load_state_dict(dense, strict=False).unexpected_keys


def test_pickles_from_before_groups_of_primary_channels_load():
    net, x = converted(), torch.randn(1, 3, 16, 16)
    data = pickle.dumps(net, protocol=0)
    data = data.replace(b'Vghosts_per_group\n', b'Vghosts_per_primary\n')
    loaded = pickle.loads(data.replace(b'Vgroup_size\n', b'Vnone\n'))
    assert torch.equal(loaded(x), net(x))
    assert {m.group_size for m in loaded.modules() if isinstance(m, gp.GhostConv2d)} == {1}


def test_old_modules_are_the_present_ones_and_warn():
    code = (
        'import warnings; warnings.simplefilter("error", FutureWarning)\n'
        'import ghost_plugin as gp\n'
        'try:\n    gp.analysis\nexcept FutureWarning as error:\n    print(error)\n'
        'warnings.simplefilter("ignore")\n'
        'from ghost_plugin.analysis import count\nfrom ghost_plugin.layers import folding\n'
        'assert count is gp.count and folding.__spec__.name.endswith("bn_folding")\n'
        'assert gp.distill is gp.distillation and not hasattr(gp, "nothing")\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'ghost_plugin.analysis is called ghost_plugin.profiling now' in done.stdout


@pytest.mark.parametrize('new', sorted(OLD_PATHS.values()))
def test_the_table_names_modules_that_exist(new):
    try:
        importlib.import_module(f'ghost_plugin.{new}')
    except ImportError as error:
        assert 'pip install' in str(error)  # an optional package is missing
