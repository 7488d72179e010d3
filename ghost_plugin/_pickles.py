"""A guarded pickle for checkpoints, for torch before 2.6, whose own takes no stand-ins.

It finds what torch's guarded one finds, boxes for what is inert, and nothing else. ``torch.load``
takes this module as its ``pickle_module``.
"""

import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

import torch

# What checkpoints of training scripts hold besides tensors: read as empty boxes, never run.
# mmengine's log buffers name their own methods by getattr, numpy's scalars their bytes by encode.
INERT = ('argparse.Namespace', 'builtins.getattr', '_codecs.encode', 'mmengine.', 'numpy.')


class Box:
    """Stands for an object of a training script; holds nothing and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Foreign(pickle.UnpicklingError):
    """A file asks for classes or functions that are neither tensors nor inert; names them."""


class Unpickler(pickle._Unpickler):  # the one in C lets no state be refused
    """Makes tensors, plain values and boxes."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name of the pickle stands for."""
        # Here, because newer versions need not have it.
        from torch._weights_only_unpickler import _get_allowed_globals

        full = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
        if full.startswith(INERT):
            return Box
        if full not in _get_allowed_globals():
            raise Foreign(full)
        return _get_allowed_globals()[full]

    def load_build(self) -> None:
        """Give an object its state; classes and functions would keep it for all."""
        if not isinstance(self.stack[-2], OrderedDict | torch.Tensor | Box):
            raise pickle.UnpicklingError('it changes what is no tensor')
        super().load_build()

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def load(file: BinaryIO, **options: Any) -> Any:
    """As ``pickle.load``, for files of old versions of torch."""
    return Unpickler(file, **options).load()
