"""Gradient checkpointing that changes no value, running statistics included."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let norms write their running statistics into copies, which are dropped afterwards.

    Nothing else about the norms changes, so that they take the same way as the first time.
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


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _statistics_kept(module)


def checkpointed(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call ``module(x)`` without keeping its inner maps; backward computes them again.

    The second forward would update running statistics twice; here it leaves them alone, so
    outputs, gradients and buffers are those of the plain call. Where no gradient is wanted this
    is the plain call.
    """
    if not (module.training and torch.is_grad_enabled()):
        return module(x)
    return checkpoint(module, x, use_reentrant=False, context_fn=partial(_contexts, module))
