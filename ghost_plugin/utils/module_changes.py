"""What changed in a model since it was built, as values for JSON, and the way back.

A converted, fused or pruned network is the network that a builder makes, with other modules and
sizes. A change names the class of a module, its attributes, its parameters and buffers, and its
children; the tensors are stored elsewhere. So a model comes back without pickle: classes are
looked up by name in torch, in this package and in the packages of the model that was built.
"""

import importlib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

Change = dict[str, Any]
Tensors = dict[str, torch.Tensor]
# Parameters, buffers, children and hooks of modules, and timm's note of what built a model.
_INTERNALS = frozenset({*vars(nn.Module()), '_model_args'})
_TRUSTED = ('torch', 'ghost_plugin')  # packages whose classes may always appear
# Functions that modules hold as attributes.
_FUNCTIONS = ('ghost_plugin.conversion.dense_checkpoints:convert_dense_weights',)


def find_changes(built: nn.Module, model: nn.Module) -> list[Change]:
    """List the modules of a model that differ from those that were built, parents first.

    Args:
        built: As the builder made it.
        model: The same after conversion, fusion or pruning.

    Raises:
        ValueError: A module cannot be described, because its class was made at run time or an
            attribute of it is no plain value.
    """
    return list(_changes('', built, model))


def apply_changes(model: nn.Module, changes: Sequence[Change]) -> nn.Module:
    """Change a model that was built as :func:`find_changes` describes; tensors stay empty.

    Args:
        model: As the builder made it; it is changed.
        changes: What :func:`find_changes` gave.

    Returns:
        The model, or what takes its place.

    Raises:
        ValueError: A class is not one of torch, of this package, or of the model's packages.
    """
    packages = {_package(module) for module in model.modules()} | {*_TRUSTED}
    for change in changes:
        parent, _, name = change['name'].rpartition('.')
        module = model.get_submodule(parent)._modules[name] if name else model
        if 'class' in change:
            module = _blank(change['class'], packages)
            if not name:
                model = module
            else:
                model.get_submodule(parent)._modules[name] = module
        _change(module, change)
    return model


def get_tensors(model: nn.Module) -> tuple[Tensors, Tensors]:
    """Parameters and persistent buffers by name, and all other tensors by name; not copied."""
    kept, others = {}, {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                into = others if key in module._non_persistent_buffers_set else kept
                into[f'{name}.{key}'.removeprefix('.')] = tensor.detach()
        for key, value in _attributes(module).items():
            if isinstance(value, torch.Tensor):
                others[f'{name}.{key}'.removeprefix('.')] = value.detach()
    return kept, others


def set_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors into a model by name, in place where size and type are the same.

    Args:
        model: Its other tensors stay.
        tensors: Parameters, buffers and attributes.
    """
    for name, tensor in tensors.items():
        parent, _, key = name.rpartition('.')
        module = model.get_submodule(parent)
        own = module._parameters.get(key, module._buffers.get(key))
        if own is not None and own.shape == tensor.shape and own.dtype == tensor.dtype:
            own.data.copy_(tensor)  # so that modules which share a parameter still do
        elif key in module._parameters:
            # Tensors of a file may lie at odd addresses, where kernels round in another way.
            module._parameters[key] = nn.Parameter(tensor.clone(), tensor.is_floating_point())
        elif key in module._buffers:
            module._buffers[key] = tensor.clone()
        else:  # an attribute that is neither
            object.__setattr__(module, key, tensor.clone())


def _changes(name: str, built: nn.Module | None, model: nn.Module) -> Iterator[Change]:
    same = built is not None and type(built) is type(model)
    change: Change = {} if same else {'class': _class_name(name, type(model))}
    ours, theirs = _attributes(model), _attributes(built) if same else {}
    new = {}
    for key, value in ours.items():
        if isinstance(value, torch.Tensor):  # stored with the other tensors
            continue
        if key in theirs and (theirs[key] is value or _is_equal(theirs[key], value)):
            continue
        try:
            new[key] = _encode(value)
        except TypeError as error:
            if key in theirs and type(theirs[key]) is type(value):
                continue  # an object that the builder makes
            raise ValueError(
                f'{name or type(model).__name__!r} cannot be described: its attribute {key!r} is '
                f'{error}; save its state dict instead'
            ) from None
    change |= {'attributes': new} if new else {}
    lost = [key for key in theirs if key not in ours]
    change |= {'removed': lost} if lost else {}
    layout = _tensor_layout(model)
    if not same or layout != _tensor_layout(built):
        change |= layout
    children = [[key, child is not None] for key, child in model._modules.items()]
    before = built._modules if same else {}
    if not same or children != [[key, child is not None] for key, child in before.items()]:
        change['children'] = children
    if change:
        yield {'name': name, **change}
    for key, child in model._modules.items():
        if child is not None:
            yield from _changes(f'{name}.{key}'.removeprefix('.'), before.get(key), child)


def _tensor_layout(module: nn.Module) -> Change:
    return {
        'parameters': [[key, p is not None] for key, p in module._parameters.items()],
        'buffers': [[key, b is not None] for key, b in module._buffers.items()],
        'temporary': sorted(module._non_persistent_buffers_set),
    }


def _change(module: nn.Module, change: Change) -> None:
    for key in change.get('removed', ()):
        delattr(module, key)
    for key, value in change.get('attributes', {}).items():
        if key in _INTERNALS or key.startswith('__'):
            raise ValueError(f'{key!r} is no attribute of a module that a file may set')
        object.__setattr__(module, key, _decode(value))
    if 'parameters' in change:
        for kind, empty in (('parameters', nn.Parameter(torch.empty(0))), ('buffers', None)):
            held = getattr(module, f'_{kind}')
            held.clear()
            held.update({
                key: (empty if kind == 'parameters' else torch.empty(0)) if there else None
                for key, there in change[kind]
            })  # fmt: skip
        module._non_persistent_buffers_set = set(change['temporary'])
    if 'children' in change:
        before = dict(module._modules)
        module._modules.clear()
        for key, there in change['children']:
            module._modules[key] = (before.get(key) or nn.Identity()) if there else None


def _blank(name: str, packages: set[str]) -> nn.Module:
    """A module of a class without its ``__init__``, which would want arguments."""
    found = _look_up(name, packages)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f'{name!r} is no class of modules')
    module = found.__new__(found)
    nn.Module.__init__(module)
    return module


def _look_up(name: str, packages: set[str]) -> Any:
    path, _, inner = name.partition(':')
    if path.partition('.')[0] not in packages:
        raise ValueError(
            f'{name!r} is not of {", ".join(sorted(packages))}, which may appear in this model'
        )
    try:
        found: Any = importlib.import_module(path)
        for part in inner.split('.'):
            found = getattr(found, part)
        known = _path(found) == name  # False for something that the module imports
    except (ImportError, AttributeError):
        known = False
    if not known:
        raise ValueError(
            f'{name!r} is no name of a class or function of the installed {path.partition(".")[0]}'
        )
    return found


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition('.')[0]


def _class_name(name: str, found: type) -> str:
    path = _path(found)
    try:
        known = _look_up(path, {path.partition('.')[0].partition(':')[0]})
    except ValueError:
        known = None
    if known is not found:
        raise ValueError(
            f'{name!r} is a {found.__qualname__}, a class that was made at run time and cannot be '
            'imported; make masks and parametrizations permanent first (prune.remove, '
            'parametrize.remove_parametrizations)'
        )
    return path


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in _INTERNALS}


def _is_equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    try:
        return bool(one == other)
    except Exception:  # tensors and arrays compare by element
        return False


def _encode(value: Any) -> Any:
    """A value for JSON; TypeError names what has none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(one) for one in value]
    if isinstance(value, tuple):
        kind = 'size' if isinstance(value, torch.Size) else 'tuple'
        return {kind: [_encode(one) for one in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {'dict': {key: _encode(one) for key, one in value.items()}}
    ours = type(value).__module__.startswith('ghost_plugin.')
    if ours and is_dataclass(value):
        parts = {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
        return {'dataclass': _path(type(value)), **parts}
    if isinstance(value, types.FunctionType) and _path(value) in _FUNCTIONS:
        return {'function': _path(value)}
    raise TypeError(f'a {type(value).__qualname__}')


def _path(found: Any) -> str:
    return f'{found.__module__}:{found.__qualname__}'


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items()))
    if kind in ('tuple', 'size'):
        made = tuple if kind == 'tuple' else torch.Size
        return made(_decode(one) for one in content)
    if kind == 'dict':
        return {key: _decode(one) for key, one in content.items()}
    if kind == 'function' and content in _FUNCTIONS:
        return _look_up(content, {'ghost_plugin'})
    found = _look_up(content, {'ghost_plugin'}) if kind == 'dataclass' else None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ValueError(f'{kind} {content!r} cannot be an attribute of a module')
    return found(**{key: _decode(one) for key, one in value.items() if key != 'dataclass'})
