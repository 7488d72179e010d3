"""Models by name: timm's and torchvision's names, OpenMMLab configs, functions in a file.

Each comes with the preprocessing of its images.
"""

import contextlib
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


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and its preprocessing.

    Attributes:
        model: Any module.
        preprocessing: Of its images.
        wrap: Turns images (N, 3, H, W) into the model's input.
        fresh: True if its weights are known to be random.
    """

    model: nn.Module
    preprocessing: Preprocessing
    wrap: Callable[[torch.Tensor], Any] = lambda images: images
    fresh: bool = False

    def example(self) -> Any:
        """An input for the model: one image of noise, on its device."""
        device = next(self.model.parameters()).device
        generator = torch.Generator().manual_seed(0)
        return self.wrap(
            torch.randn(1, 3, *self.preprocessing.size, generator=generator).to(device)
        )

    def adjusted(
        self,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> 'LoadedModel':
        """The same model with other preprocessing; small images are not cropped then.

        Args:
            size: Height and width, pixels.
            mean, std: One per channel, of values in 0..1.
        """
        given = {'size': size, 'mean': mean, 'std': std}
        new = {name: tuple(values) for name, values in given.items() if values is not None}
        changed = replace(self.preprocessing, **new)
        if size is not None and changed.small:
            changed = replace(changed, crop_pct=1.0)
        return replace(self, preprocessing=changed)


def load(
    name: str,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
) -> LoadedModel:
    """Build a model.

    Args:
        name: One of :data:`FORMS`.
        num_classes: Outputs of its classifier; the model's default without it.
        checkpoint: Weights to load, any layout of :func:`ghost_plugin.load_weights`.
        pretrained: Download the weights that timm or torchvision publish.

    Raises:
        ValueError: No such model, with the nearest names; or it cannot be built.
        FileNotFoundError: No such file.
        ImportError: The framework is not installed.
    """
    build, rest = _builder(name)
    source = build(rest, num_classes, pretrained)
    if checkpoint is not None:
        load_weights(source.model, checkpoint)
        if hasattr(source.model, 'is_init'):  # OpenMMLab's init_weights would replace them
            source.model.is_init = True
    source.model.eval()  # on its own line: many of OpenMMLab's return None here
    published = name.partition(':')[0] in _BUILDERS
    return replace(source, fresh=published and checkpoint is None and not pretrained)


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
    """True if a model's name is that of an OpenMMLab config."""
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
    """The most similar names, separated by commas; prefixes up to a colon are ignored.

    Args:
        name: Unknown name.
        known: Names that exist.
        number: Of names to return.
    """
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
    """Call foreign code that builds a model, and turn its errors into a ValueError."""
    try:
        return build()
    except Exception as error:
        reason = ' '.join(str(error).split())
        hint = ''
        if published:  # downloads fail with errors of many types
            hint = (
                '; give a local file as checkpoint (--checkpoint) instead of pretrained, or '
                'neither for random weights'
            )
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
    """Names of torchvision's models for single images, by module."""
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
    if part == 'detection':  # normalises its images itself
        return LoadedModel(model, Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3))
    return LoadedModel(model, _torchvision_preprocessing(models.get_model_weights(name)))


def _torchvision_preprocessing(weights: Any) -> Preprocessing:
    """The preprocessing that torchvision publishes with its weights."""
    if not hasattr(weights, 'DEFAULT'):
        return Preprocessing()
    preset = weights.DEFAULT.transforms()
    crop, resize = (getattr(preset, key, None) for key in ('crop_size', 'resize_size'))
    size = crop or resize or [224]
    size = size[0] if isinstance(size, list | tuple) else size
    share = size / resize[0] if crop and resize else 1.0
    filter_name = str(getattr(preset.interpolation, 'value', 'bilinear'))
    return Preprocessing((size, size), tuple(preset.mean), tuple(preset.std), share, filter_name)


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
    default = {'interpolation': 'bilinear'}
    cfg = getattr(model, 'pretrained_cfg', None) or default
    return LoadedModel(model, preprocessing_from_cfg(cfg))


def _module(path: Path) -> Any:
    """Run a Python file as a module that pickle and its dataclasses can find again."""
    if not path.is_file():
        raise FileNotFoundError(f'no file at {str(path)!r}')
    name = f'_model_of_{path.stem}'
    if getattr(sys.modules.get(name), '__file__', None) == str(path.resolve()):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # for its neighbours
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
    with contextlib.redirect_stdout(sys.stderr):  # the packages print; --json has it for itself
        return LoadedModel(*build(name, num_classes))


_BUILDERS: dict[str, Builder] = {'timm': _from_timm, 'torchvision': _from_torchvision}
