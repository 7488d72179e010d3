"""Checkpoint files as mappings; nothing that lies in them is executed.

Files are read with ``weights_only=True``, before torch 2.6 by a pickle that is guarded alike, or
are safetensors, so a checkpoint can hold tensors and plain values but no code.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import _optional, _pickles, _torch
from ._pickles import INERT, Box, Foreign


def read(path: str | os.PathLike) -> Mapping:
    """A checkpoint file as a mapping; nothing in it is executed."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint at {os.fspath(path)!r}')
    if os.fspath(path).endswith('.safetensors'):  # what timm's hub holds
        return _safetensors(path)
    try:
        content = _load(path)
    except Foreign as error:
        raise ValueError(_refused(path, f'loading it would run {error}')) from error
    except OSError:  # not readable, which says itself
        raise
    except Exception as error:  # what the unpickler meets in a foreign file can raise anything
        # Not in torch's own words: they advise to drop the guard.
        reason = f'damaged, or no file of torch ({type(error).__name__})'
        raise ValueError(_refused(path, reason)) from error
    if not isinstance(content, Mapping):
        raise ValueError(f'{os.fspath(path)!r} holds a {type(content).__name__}, not a state dict')
    return content


def _safetensors(path: str | os.PathLike) -> Mapping:
    _optional.require('safetensors')
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(_refused(path, f'damaged, or no safetensors ({error})')) from error


def _load(path: str | os.PathLike) -> Any:
    """A file of torch, with boxes in the place of what is inert."""
    options = {'map_location': 'cpu', 'weights_only': _torch.LISTS_NAMES}
    if not _torch.LISTS_NAMES:
        return torch.load(path, pickle_module=_pickles, **options)
    names = _unknown(path)
    foreign = [name for name in names if not name.startswith(INERT)]
    if foreign:
        raise Foreign(some(foreign))
    with torch.serialization.safe_globals([(Box, name) for name in names]):
        return torch.load(path, **options)


def _unknown(path: str | os.PathLike) -> list[str]:
    """The names of classes and functions in a checkpoint that torch does not know."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a file of torch; loading says so
        return []


def _refused(path: str | os.PathLike, reason: str) -> str:
    return f'{os.fspath(path)!r} is not a checkpoint of plain tensors: {reason}'


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are more."""
    shown = ', '.join(names[:3]) or 'nothing'
    return shown + (f' and {len(names) - 3} more' if len(names) > 3 else '')
