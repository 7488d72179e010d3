"""Checkpoint files as mappings; nothing in them is executed.

Files of torch are read with ``weights_only=True``, before torch 2.6 by an equally restricted
unpickler, which also reads pickles of numpy arrays. Safetensors and ``.npz`` are read, too. So a
checkpoint can hold tensors, arrays and plain values but no code.
"""

import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import optional, restricted_pickle, torch_compat
from .atomic_io import atomic_write
from .restricted_pickle import ARRAYS, INERT, Array, Box, Foreign

# Types of numpy without byte order, and of torch. numpy writes bfloat16 as raw bytes.
_DTYPES = {
    'b1': torch.bool,
    'u1': torch.uint8,
    **{f'i{size}': getattr(torch, f'int{8 * size}') for size in (1, 2, 4, 8)},
    **{f'f{size}': getattr(torch, f'float{8 * size}') for size in (2, 4, 8)},
    'V2': torch.bfloat16,
}
_NOT_NUMERIC = 'OSUMmV'  # objects, texts, dates, records


def read(path: str | os.PathLike) -> dict:
    """Read a checkpoint file, with arrays as tensors; nothing in it is executed.

    Args:
        path: A file of torch, ``.safetensors``, ``.npz``, or a pickle of numpy arrays
            (``.pdparams``).

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, no checkpoint, or loading it would run code.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint at {os.fspath(path)!r}')
    if os.fspath(path).endswith('.safetensors'):
        return dict(_safetensors(path))
    try:
        content = _content(path)
    except Foreign as error:
        raise ValueError(_refused(path, f'loading it would run {error}')) from error
    except (OSError, ImportError):  # their messages are clear
        raise
    except Exception as error:  # a foreign file can raise anything
        # Not torch's own message, which advises weights_only=False.
        reason = f'damaged, or no file of torch ({type(error).__name__})'
        raise ValueError(_refused(path, reason)) from error
    if not isinstance(content, Mapping):
        raise ValueError(f'{os.fspath(path)!r} holds a {type(content).__name__}, not a state dict')
    return as_tensors(content)


def save(content: Any, path: str | os.PathLike) -> None:
    """Save by ``torch.save``; the file takes its place only when it is complete.

    Args:
        content: A state dict, or whatever else ``torch.save`` takes.
        path: File to write.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        with atomic_write(path) as partial:
            torch.save(content, partial)
    except RuntimeError as error:  # raised by torch for a full disk
        raise OSError(f'cannot write {os.fspath(path)!r}: {error}') from error


def as_tensors(content: Mapping, place: str = '') -> dict:
    """Convert the numpy arrays of a mapping, and of all mappings in it, to tensors.

    Args:
        content: A checkpoint.
        place: Its key path in a larger one, for messages.

    Raises:
        ValueError: An array has a numeric type that torch lacks.
    """
    found = {}
    for key, value in content.items():
        name = f'{place}.{key}' if place else str(key)
        pair = isinstance(value, tuple) and len(value) == 2  # PaddlePaddle: (name, array)
        value = value[1] if pair and isinstance(value[1], Array) else value
        if isinstance(value, Mapping):
            found[key] = as_tensors(value, name)
        elif isinstance(value, Array):
            code = value.dtype.code
            found[key] = _tensor(name, value.data, code, value.shape, value.fortran)
        elif _is_numpy(value):
            code = '|V2' if value.dtype.name == 'bfloat16' else value.dtype.str
            found[key] = _tensor(name, value.tobytes(), code, value.shape)
        else:
            found[key] = value
    return found


def _is_numpy(value: Any) -> bool:
    numpy = sys.modules.get('numpy')  # if it is not imported there are no arrays
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def _tensor(
    name: str, data: Any, code: str, shape: Sequence[int], fortran: bool = False
) -> torch.Tensor | Box:
    """A tensor from the bytes of an array; a :class:`Box` if its elements are not numbers.

    Args:
        name: Name for messages.
        data: Bytes of all elements.
        code: numpy's type code, such as ``'<f4'``.
        shape: Shape of the array.
        fortran: True if elements of the first axis are adjacent.
    """
    order, kind = code[:1], code[1:]
    if kind not in _DTYPES:
        if kind[:1] in _NOT_NUMERIC:
            return Box()
        known = ', '.join(str(dtype).removeprefix('torch.') for dtype in _DTYPES.values())
        raise ValueError(
            f'{name!r} is an array of dtype {code!r}; {known} can be loaded, convert it to one '
            'of these (array.astype)'
        )
    data = data.encode('latin1') if isinstance(data, str) else data  # written by Python 2
    dtype = _DTYPES[kind]
    if not len(data):
        return torch.zeros(tuple(shape), dtype=dtype)
    elements = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, int(kind[1:]))
    little = order == '<' or (order in '|=' and sys.byteorder == 'little')
    if little != (sys.byteorder == 'little'):
        elements = elements.flip(1)
    elements = elements.contiguous().flatten().view(dtype)
    if fortran:
        return elements.reshape(tuple(shape)[::-1]).permute(*reversed(range(len(shape))))
    return elements.reshape(tuple(shape))


def _content(path: str | os.PathLike) -> Any:
    """Read a file, with stand-ins for arrays and :class:`Box` for inert objects."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            arrays = all(name.endswith('.npy') for name in archive.namelist())
        return _npz(path) if arrays else _load(path)
    with open(path, 'rb') as file:
        if file.read(1) == b'\x80':  # a pickle
            file.seek(0)
            content = restricted_pickle.load(file, encoding='latin1')
            if content != torch.serialization.MAGIC_NUMBER:  # the beginning of old files of torch
                return content
    return _load(path)


def _npz(path: str | os.PathLike) -> Mapping:
    optional.require('numpy')
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _safetensors(path: str | os.PathLike) -> Mapping:
    optional.require('safetensors')
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(_refused(path, f'damaged, or no safetensors ({error})')) from error


def _load(path: str | os.PathLike) -> Any:
    """Read a file of torch, with :class:`Box` for inert objects."""
    # torch lists no names for files in the old format.
    if not (torch_compat.LISTS_NAMES and zipfile.is_zipfile(path)):
        return torch.load(
            path, map_location='cpu', weights_only=False, pickle_module=restricted_pickle
        )
    names = _unknown(path)
    foreign = [name for name in names if name not in ARRAYS and not name.startswith(INERT)]
    if foreign:
        raise Foreign(some(foreign))
    stand_ins = [(ARRAYS.get(name, Box), name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location='cpu', weights_only=True)


def _unknown(path: str | os.PathLike) -> list[str]:
    """Names of classes and functions in a checkpoint that torch does not allow."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a file of torch; loading raises
        return []


def _refused(path: str | os.PathLike, reason: str) -> str:
    return f'{os.fspath(path)!r} is not a checkpoint of plain tensors: {reason}'


def some(names: Sequence[str]) -> str:
    """The first three of some names, and the number of others."""
    shown = ', '.join(names[:3]) or 'nothing'
    return shown + (f' and {len(names) - 3} more' if len(names) > 3 else '')
