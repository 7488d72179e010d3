"""OpenMMLab's door plate; mmengine imports this file by itself when it meets ``ghost_plugin.X``.

The parent is mmengine's root registry, so the scope is found from MMDetection, MMPretrain and
every other library that stands on it.
"""

from . import _optional

_optional.require('mmengine', 'mmcv')

from mmengine.registry import MODELS as ROOT  # noqa: E402
from mmengine.registry import Registry  # noqa: E402

# A reloaded module finds the scope that it made before.
MODELS = ROOT.children.get('ghost_plugin') or Registry(
    'model',
    parent=ROOT,
    scope='ghost_plugin',
    locations=['ghost_plugin.integrations.openmmlab'],
)
