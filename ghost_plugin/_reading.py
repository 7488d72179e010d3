"""Checkpoint files as mappings; nothing that lies in them is executed.

Files are read with ``weights_only=True`` or are safetensors, so a checkpoint can hold tensors and
plain values but no code.
"""

import os
import pickletools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from . import _optional, _torch

# What checkpoints of training scripts hold besides tensors: read as empty boxes, never run.
# mmengine's log buffers name their own methods by getattr, numpy's scalars their bytes by encode.
_INERT = ('argparse.Namespace', 'builtins.getattr', '_codecs.encode', 'mmengine.', 'numpy.')
# Of a torch that cannot tell which names it knows itself: those that it is left to judge.
_LEFT_TO_TORCH = ('torch.', 'collections.')


def read(path: str | os.PathLike) -> Mapping:
    """A checkpoint file as a mapping; nothing in it is executed."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint at {os.fspath(path)!r}')
    if os.fspath(path).endswith('.safetensors'):  # what timm's hub holds
        return _safetensors(path)
    names = _unknown(path)
    foreign = [name for name in names if not name.startswith(_INERT)]
    if foreign:
        raise ValueError(_refused(path, f'loading it would run {some(foreign)}'))
    try:
        with _boxes(names):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except OSError:  # not readable, which says itself
        raise
    except Exception as error:  # what the unpickler meets in a foreign file can raise anything
        # Not in torch's own words: they advise to drop the guard.
        reason = f'damaged, or no file of torch ({type(error).__name__})'
        if names and not _torch.TAKES_NAMES:
            reason = f'to pass over {some(names)} takes torch 2.4 or newer, or save its state dict'
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


class _Box:
    """Stands for an object of a training script; holds nothing and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    @classmethod
    def called(cls, name: str) -> type:
        """A box that goes by another name."""
        module, _, own = name.rpartition('.')
        return type(own, (cls,), {'__module__': module})


def _unknown(path: str | os.PathLike) -> list[str]:
    """The names of classes and functions in a checkpoint that torch does not know."""
    try:
        if _torch.LISTS_NAMES:
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
        return [name for name in _names(path) if not name.startswith(_LEFT_TO_TORCH)]
    except Exception:  # not a file of torch; loading says so
        return []


def _names(path: str | os.PathLike) -> list[str]:
    """All names of classes and functions that the pickle in a checkpoint asks for."""
    with zipfile.ZipFile(path) as file:
        pickled = next(name for name in file.namelist() if name.endswith('/data.pkl'))
        found = pickletools.genops(file.read(pickled))
        names = {str(name) for code, name, _ in found if code.name == 'GLOBAL'}
    # Pickles of torch call the builtins as Python 2 did.
    return sorted(name.replace('__builtin__ ', 'builtins ').replace(' ', '.') for name in names)


@contextmanager
def _boxes(names: Sequence[str]) -> Iterator[None]:
    """Let torch read classes and functions of these names as :class:`_Box`."""
    if _torch.LISTS_NAMES:  # and takes a stand-in with the name that it stands for
        with torch.serialization.safe_globals([(_Box, name) for name in names]):
            yield
        return
    if not _torch.TAKES_NAMES:  # it refuses them
        yield
        return
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([_Box.called(name) for name in names])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _refused(path: str | os.PathLike, reason: str) -> str:
    return f'{os.fspath(path)!r} is not a checkpoint of plain tensors: {reason}'


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are more."""
    shown = ', '.join(names[:3]) or 'nothing'
    return shown + (f' and {len(names) - 3} more' if len(names) > 3 else '')
