"""Integrations into other frameworks: timm, OpenMMLab and torch-pruning; imported on demand."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """Import ``integrations.pruning`` under its present name, ``integrations.torch_pruning``."""
    if name == 'pruning':
        return importlib.import_module('.torch_pruning', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
