"""timm models of every variant, the small ones by default."""

import pytest

import ghost_plugin as gp

timm = pytest.importorskip('timm')

from ghost_plugin.integrations.timm.ghostnet_plugin import VARIANTS

# The smallest variant of each version by default, all of them in the slow sweep.
SMALL = ['ghostnet_plugin_050', 'ghostnet_plugin_v2_100', 'ghostnet_plugin_v3_050',
         'ghostnet_plugin_gghost_032, arch 002', 'ghostnet_plugin_rep_050']  # fmt: skip
every = pytest.mark.parametrize(
    'name', SMALL + [pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS if n not in SMALL]
)
small = pytest.mark.parametrize('name', SMALL)


def make(name, **kwargs):
    name, _, arch = name.partition(', arch ')
    return timm.create_model(name, **{**({'arch': arch} if arch else {}), **kwargs})


def channels(name):
    registered, _, arch = name.partition(', arch ')
    model_class, size = VARIANTS[registered]
    size = {'arch': arch} if arch else {k: v for k, v in size.items() if k != 'drop_rate'}
    return gp.out_channels(model_class.family, range(5), **size)
