"""OpenMMLab registries of this package; mmengine imports this file when a config names our scope.

Their parents are mmengine's root registries, so ``ghost_plugin.X`` is found from MMDetection,
MMPretrain and every other library that is built on mmengine.
"""

import warnings
from collections.abc import Callable
from typing import Any

from .utils import optional

optional.require('mmengine', 'mmcv')

from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry

_LOCATIONS = ['ghost_plugin.integrations.openmmlab']


def _child(kind: str, parent: Registry) -> Registry:
    """Create a child registry; a reloaded module finds the one that it made before."""
    return parent.children.get('ghost_plugin') or Registry(
        kind, parent=parent, scope='ghost_plugin', locations=_LOCATIONS
    )


MODELS = _child('model', ROOT)
HOOKS = _child('hook', ROOT_HOOKS)
FUNCTIONS = _child('function', ROOT_FUNCTIONS)


def register_old_name(registry: Registry, name: str, new: Callable) -> None:
    """Keep a deprecated name of a registered type, with a warning when it is built.

    Args:
        registry: Registry of the type.
        name: Deprecated name.
        new: The type under its present name.
    """

    def build(*args: Any, **kwargs: Any) -> Any:
        text = f'ghost_plugin.{name} is deprecated; use ghost_plugin.{new.__name__}'
        warnings.warn(text, FutureWarning, stacklevel=2)
        return new(*args, **kwargs)

    registry.register_module(name=name, module=build, force=True)
