"""OpenMMLab's door plate; mmengine imports this file by itself when it meets ``ghost_plugin.X``.

The parent is mmengine's root registry, so the scope is found from MMDetection, MMPretrain and
every other library that stands on it.
"""

from .utils import optional

optional.require('mmengine', 'mmcv')

from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry


def _child(kind: str, parent: Registry, *locations: str) -> Registry:
    """A child registry; a reloaded module finds the one that it made before."""
    places = [f'ghost_plugin.integrations.{location}' for location in locations]
    return parent.children.get('ghost_plugin') or Registry(
        kind, parent=parent, scope='ghost_plugin', locations=places
    )


MODELS = _child('model', ROOT, 'openmmlab')
HOOKS = _child('hook', ROOT_HOOKS, 'openmmlab.progress_hook', 'openmmlab.checkpoint_hook')
FUNCTIONS = _child('function', ROOT_FUNCTIONS, 'openmmlab.fsdp')
