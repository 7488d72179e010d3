"""A restricted unpickler for checkpoints.

It serves torch before 2.6, whose own takes no stand-ins, and pickles of numpy arrays that are not
files of torch (PaddlePaddle's ``.pdparams``). It allows the classes that torch's own allows,
stand-ins for numpy's arrays and boxes for inert objects, nothing else. ``torch.load`` takes this
module as its ``pickle_module``.
"""

import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

import torch

# Objects of training scripts beside the tensors of a checkpoint: read as empty boxes, never run.
# mmengine's log buffers name their own methods by getattr.
INERT = ('argparse.Namespace', 'builtins.getattr', 'mmengine.', 'numpy.', 'ml_dtypes.')


class Box:
    """Stands for an object of a training script; empty, without behaviour."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class DType:
    """Stands for ``numpy.dtype``: its code, such as ``'<f4'``; bfloat16 is ``'|V2'``."""

    def __init__(self, kind: Any = '', *flags: Any) -> None:
        self.kind = 'V2' if kind is BFloat16 else kind
        self.order = '|'

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    @property
    def code(self) -> str:
        """Byte order, kind and bytes per element."""
        known = isinstance(self.kind, str) and isinstance(self.order, str)
        return self.order + self.kind if known else '|unknown'


class BFloat16:
    """Stands for the type ``ml_dtypes.bfloat16``."""


class Array:
    """Stands for an array or a scalar of numpy; ``checkpoint_io`` makes a tensor of it.

    Attributes:
        data: Bytes of all elements; a list for an array of objects.
        dtype: Type of the elements.
        shape: Shape of the array.
        fortran: True if elements of the first axis are adjacent.
    """

    data: Any = b''
    dtype: DType
    shape: tuple[int, ...] = ()
    fortran = False

    def __init__(self, *args: Any) -> None:  # as numpy's _reconstruct
        self.dtype = DType()

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state


class Scalar(Array):
    """Stands for ``numpy.core.multiarray.scalar``."""

    def __init__(self, dtype: DType, data: Any = b'') -> None:
        self.dtype, self.data = dtype, data


class Buffered(Array):
    """Stands for ``numpy.core.numeric._frombuffer``, from protocol 5 on."""

    def __init__(self, data: Any, dtype: DType, shape: tuple[int, ...], order: str) -> None:
        self.data, self.dtype, self.shape, self.fortran = data, dtype, shape, order == 'F'


class NDArray:
    """Stands for the class ``numpy.ndarray``, which pickles of arrays only name."""


def encode(text: str = '', encoding: str = 'latin1') -> bytes:
    """Stands for ``_codecs.encode`` and ``bytes``, with which protocol 2 writes bytes.

    Args:
        text: The bytes, each as the character with its number.
        encoding: latin1.
    """
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'bytes are written as latin1, not {encoding!r}')
    return text.encode('latin1')


# Full names in pickles of arrays, and their stand-ins.
ARRAYS = {
    '_codecs.encode': encode,
    'builtins.bytes': encode,
    'ml_dtypes.bfloat16': BFloat16,
    'numpy.dtype': DType,
    'numpy.ndarray': NDArray,
    **{
        f'numpy.{core}.{name}': stand_in
        for core in ('core', '_core')
        for name, stand_in in (
            ('multiarray._reconstruct', Array),
            ('multiarray.scalar', Scalar),
            ('numeric._frombuffer', Buffered),
        )
    },
}
_CONTAINERS = {f'builtins.{kind.__name__}': kind for kind in (dict, list, set, tuple)}


class Foreign(pickle.UnpicklingError):
    """A file needs classes or functions that are neither tensors nor inert; names them."""


class Unpickler(pickle._Unpickler):  # the one in C cannot refuse a state
    """Creates tensors, plain values and boxes."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function for a name in the pickle.

        Args:
            module, name: As in ``pickle.Unpickler``.

        Raises:
            Foreign: It is not allowed.
        """
        # Imported here because newer versions may lack it.
        from torch._weights_only_unpickler import _get_allowed_globals

        full = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
        if full in ARRAYS:
            return ARRAYS[full]
        if full.startswith(INERT):
            return Box
        if full in _CONTAINERS:
            return _CONTAINERS[full]
        if full not in _get_allowed_globals():
            raise Foreign(full)
        return _get_allowed_globals()[full]

    def load_build(self) -> None:
        """Set the state of an object, never that of a class or function."""
        if not isinstance(self.stack[-2], OrderedDict | torch.Tensor | Box | Array | DType):
            kind = type(self.stack[-2]).__name__
            raise pickle.UnpicklingError(f'it sets the state of a {kind}, which is not a tensor')
        super().load_build()

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def load(file: BinaryIO, **options: Any) -> Any:
    """As ``pickle.load``; ``torch.load`` calls it with its options."""
    return Unpickler(file, **options).load()
