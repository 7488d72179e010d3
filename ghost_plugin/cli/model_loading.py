"""Models by what a user calls them: timm's and torchvision's names, configs, functions in a file.

Each comes with the look that its pictures must have.
"""

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..training.preprocessing import Preprocessing, preprocessing_from_cfg
from ..utils import optional
from ..weights import load_weights

FORMS = (
    'timm:NAME, torchvision:NAME, an OpenMMLab config, mmdet::..., mmpretrain::... or '
    'FILE.py:FUNCTION'
)


def _itself(images: torch.Tensor) -> torch.Tensor:
    return images


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and how it wants its pictures.

    Attributes:
        model: Any module.
        look: What becomes of its pictures.
        wrap: Turns (N, 3, H, W) into what the model is called with.
    """

    model: nn.Module
    look: Preprocessing
    wrap: Callable[[torch.Tensor], Any] = _itself

    def example(self) -> Any:
        """What to call the model with: noise as one picture, on its device."""
        device = next(self.model.parameters()).device
        generator = torch.Generator().manual_seed(0)
        return self.wrap(torch.randn(1, 3, *self.look.size, generator=generator).to(device))

    def adjusted(
        self,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> 'LoadedModel':
        """With another look where one is given; small pictures are then seen whole."""
        look = replace(self.look, **({} if size is None else {'size': tuple(size)}))
        if size is not None and look.small:
            look = replace(look, crop_pct=1.0)
        given = {'mean': mean, 'std': std}
        new = {name: tuple(values) for name, values in given.items() if values is not None}
        return replace(self, look=replace(look, **new))


def load(
    name: str,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
) -> LoadedModel:
    """Build a model.

    Args:
        name: One of :data:`FORMS`.
        num_classes: Outputs of its classifier; its own number without it.
        checkpoint: Weights to load, any layout of :func:`ghost_plugin.load_weights`.
        pretrained: With the weights that timm or torchvision publish.

    Raises:
        ValueError: No such model, with the nearest names; it cannot be built so.
        FileNotFoundError: No such file. ImportError: The framework is not there.
    """
    build, rest = _builder(name)
    source = build(rest, num_classes, pretrained)
    if checkpoint is not None:
        load_weights(source.model, checkpoint)
        if hasattr(source.model, 'is_init'):  # OpenMMLab's init_weights would replace them
            source.model.is_init = True
    source.model.eval()  # on its own line: many of OpenMMLab's return None here
    return source


Builder = Callable[[str, int | None, bool], LoadedModel]


def _builder(name: str) -> tuple[Builder, str]:
    kind, colon, rest = name.partition(':')
    if colon and kind in _BUILDERS:
        return _BUILDERS[kind], rest
    path, colon, function = name.rpartition(':')
    if colon and path.endswith('.py') and function:
        return _from_file, name
    if is_config(name):
        return _from_config, name
    near = nearest(name, _known_names(), 3)
    hint = f'; did you mean {near}?' if near else ''
    raise ValueError(f'a model is {FORMS}, got {name!r}{hint}')


def is_config(name: str) -> bool:
    """Whether a model's name is that of an OpenMMLab config."""
    return '::' in name or name.endswith('.py')


def _known_names() -> list[str]:
    names = []
    if optional.usable('timm'):
        import timm

        names += [f'timm:{name}' for name in timm.list_models()]
    if optional.usable('torchvision'):
        names += [
            f'torchvision:{name}' for names in _torchvision_names().values() for name in names
        ]
    return names


def nearest(name: str, known: Iterable[str], number: int = 3) -> str:
    """The names most like one, whatever stands in front of their colon, as a sentence's part."""
    named: dict[str, list[str]] = {}
    for one in known:
        named.setdefault(one.rpartition(':')[2], []).append(one)
    found = difflib.get_close_matches(name.rpartition(':')[2], named, n=number, cutoff=0.5)
    return ', '.join([one for bare in found for one in named[bare]][:number])


def _unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    near = nearest(name, known)
    hint = f'; did you mean {near}?' if near else ''
    return ValueError(f'{kind} has no model {name!r}{hint}')


def _built(name: str, build: Callable[[], nn.Module], published: bool = False) -> nn.Module:
    """Call foreign code that builds a model; whatever it raises was caused by the arguments."""
    try:
        return build()
    except Exception as error:
        reason = ' '.join(str(error).split())
        # A file that is missing or a download that failed.
        hint = '; give a local file as checkpoint (--checkpoint) instead of pretrained'
        hint = hint if published and isinstance(error, OSError) else ''
        raise ValueError(f'cannot build {name}: {type(error).__name__}: {reason}{hint}') from error


def _from_timm(name: str, num_classes: int | None, pretrained: bool) -> LoadedModel:
    optional.require('timm')
    import timm

    if not timm.is_model(name):
        raise _unknown('timm', name, timm.list_models())
    options = {} if num_classes is None else {'num_classes': num_classes}
    model = _built(
        name, lambda: timm.create_model(name, pretrained=pretrained, **options), pretrained
    )
    return LoadedModel(model, preprocessing_from_cfg(model.pretrained_cfg))


def _torchvision_names() -> dict[str, list[str]]:
    """Names of what torchvision builds for single pictures, by its module."""
    from torchvision import models

    parts = {
        'classification': models,
        'detection': models.detection,
        'segmentation': models.segmentation,
    }
    return {part: models.list_models(module=module) for part, module in parts.items()}


def _from_torchvision(name: str, num_classes: int | None, pretrained: bool) -> LoadedModel:
    optional.require('torchvision')
    from torchvision import models

    names = _torchvision_names()
    part = next((part for part, known in names.items() if name in known), None)
    if part is None:
        raise _unknown('torchvision', name, (n for known in names.values() for n in known))
    options: dict[str, Any] = {'weights': 'DEFAULT' if pretrained else None}
    if num_classes is not None:
        options['num_classes'] = num_classes
    if part != 'classification' and not pretrained:
        options['weights_backbone'] = None  # otherwise it is downloaded
    model = _built(name, lambda: models.get_model(name, **options), pretrained)
    if part == 'detection':  # normalises its pictures itself
        return LoadedModel(model, Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3))
    return LoadedModel(model, _torchvision_look(models.get_model_weights(name)))


def _torchvision_look(weights: Any) -> Preprocessing:
    """The look that torchvision writes beside its weights."""
    if not hasattr(weights, 'DEFAULT'):
        return Preprocessing()
    preset = weights.DEFAULT.transforms()
    crop, resize = (getattr(preset, key, None) for key in ('crop_size', 'resize_size'))
    size = crop or resize or [224]
    side = size[0] if isinstance(size, list | tuple) else size
    share = side / resize[0] if crop and resize else 1.0
    filter_name = str(getattr(preset.interpolation, 'value', 'bilinear'))
    return Preprocessing((side, side), tuple(preset.mean), tuple(preset.std), share, filter_name)


def _from_file(name: str, num_classes: int | None, pretrained: bool) -> LoadedModel:
    path, _, function = name.rpartition(':')
    if pretrained:
        raise ValueError(f'{name} has no published weights; give a checkpoint')
    module = _module(Path(path))
    make = getattr(module, function, None)
    if not callable(make):
        known = [n for n, f in vars(module).items() if inspect.isfunction(f)]
        near = nearest(function, known) or ', '.join(known[:3])
        raise ValueError(f'{path} has no function {function!r}; it has {near or "none"}')
    options = {} if num_classes is None else {'num_classes': num_classes}
    model = _built(name, lambda: make(**options))
    if not isinstance(model, nn.Module):
        raise ValueError(f'{name} returns a {type(model).__name__}, not a torch.nn.Module')
    return LoadedModel(
        model, preprocessing_from_cfg(getattr(model, 'pretrained_cfg', None) or _PLAIN)
    )


_PLAIN = {'interpolation': 'bilinear'}


def _module(path: Path) -> Any:
    """Run a Python file as a module that pickle and its dataclasses can find again."""
    if not path.is_file():
        raise FileNotFoundError(f'no file at {str(path)!r}')
    name = f'_model_of_{path.stem}'
    if getattr(sys.modules.get(name), '__file__', None) == str(path.resolve()):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it
    try:
        _built(str(path), lambda: spec.loader.exec_module(module))
    except ValueError:
        del sys.modules[name]
        raise
    finally:
        sys.path.pop(0)
    return module


def _from_config(name: str, num_classes: int | None, pretrained: bool) -> LoadedModel:
    optional.require('mmengine')
    from ..integrations.openmmlab.model_from_config import build

    if pretrained:
        raise ValueError(f'{name} names no published weights; give a checkpoint')
    return LoadedModel(*build(name, num_classes))


_BUILDERS: dict[str, Builder] = {'timm': _from_timm, 'torchvision': _from_torchvision}
