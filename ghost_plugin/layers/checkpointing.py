"""Gradient checkpointing that changes no value, running statistics included."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _preserving_statistics(module: nn.Module) -> Iterator[None]:
    """Let norms write their running statistics into copies, which are dropped afterwards.

    Nothing else about the norms changes, so that they compute the same as the first time.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({k: v if v is None else v.clone() for k, v in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)


def checkpointed(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call ``module(x)`` without keeping its activations; backward computes them again.

    The second forward does not update running statistics, so outputs, gradients and buffers are
    those of the plain call. Without gradients this is the plain call.

    Args:
        module: Called with one tensor.
        x: Its input.
    """
    if not (module.training and torch.is_grad_enabled()):
        return module(x)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _preserving_statistics(module)  # of the first and second forward

    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)
