"""Import paths of version 0.1, for user code and for pickles of whole models; with a warning."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.partition('.')[0]
# Old names of modules inside the package, and the present ones.
OLD_PATHS = {
    'analysis': 'profiling',
    'backbones.g_ghost': 'backbones.g_ghost_regnet',
    'backbones.parts': 'backbones.common',
    'conversion.loading': 'conversion.dense_checkpoints',
    'deploy.gpu': 'deploy.kernels.triton_modules',
    'distill': 'distillation',
    'integrations.levels': 'integrations.openmmlab.feature_adapter',
    'integrations.pruning': 'integrations.torch_pruning',
    'integrations.swap': 'integrations.openmmlab.backbone_swap',
    'integrations.timm_ghost': 'integrations.timm.ghostnet_plugin',
    'layers.branches': 'layers.parallel_branches',
    'layers.cheap': 'layers.cheap_ops',
    'layers.folded': 'graph.folded_ghost',
    'layers.folding': 'layers.bn_folding',
}


class _Redirect(Loader):
    """Loads the module that an old name stands for."""

    def __init__(self, new: str) -> None:
        self.new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f'{spec.name} is called {self.new} now', FutureWarning, stacklevel=2)
        module = importlib.import_module(self.new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has replaced it


class _OldPathFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name, None for others.

        Args:
            fullname, path, target: As in ``MetaPathFinder``; only the name matters.
        """
        new = OLD_PATHS.get(fullname.removeprefix(f'{_PACKAGE}.'))
        if new is None or not fullname.startswith(f'{_PACKAGE}.'):
            return None
        return ModuleSpec(fullname, _Redirect(f'{_PACKAGE}.{new}'))


def install() -> None:
    """Let the import system find old names; a second call changes nothing."""
    if not any(type(finder).__name__ == _OldPathFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(_OldPathFinder())
