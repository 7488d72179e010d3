"""Convs whose weights oneDNN has in its own layout, with the ReLU behind them in the same kernel.

PyTorch's conv on the CPU lays its weights out anew at each call, for kernels of a tenth of a
millisecond a third of their time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .concat_elimination.lazy_concat import Conv2d, Halves

_prepacked = torch.ops.mkldnn_prepacked  # its functions come when they are asked for


def packable(inputs: Sequence[torch.Tensor]) -> bool:
    """Whether this PyTorch has such convs for these inputs."""
    known = torch.backends.mkldnn.is_available() and hasattr(_prepacked, 'conv2d_run')
    return known and all(x.device.type == 'cpu' for x in inputs)


@dataclass(eq=False)
class _Conv:
    """A conv that was called.

    Attributes:
        weight, bias, how: Its arguments; ``how`` from stride to groups.
        size: Of its input.
        relu: Whether an in-place ReLU came next.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    how: tuple[list[int], list[int], list[int], int]
    size: list[int]
    relu: bool = False

    def packed(self) -> Any:
        """What oneDNN needs for it."""
        attribute = 'relu' if self.relu else 'none'
        return _prepacked.conv2d_prepack(self.weight, self.bias, *self.how, self.size, attribute)


class Packed(nn.Module):
    """A module in eval mode whose convs are packed for inputs of certain shapes.

    Args:
        module: Takes tensors, and calls the same convs for all that have these shapes.
        inputs: For it, channels-last.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.module = module
        noting = _Noting()
        with noting, torch.no_grad():
            module(*inputs)
        self.calls = tuple((f'conv{i}', conv.relu) for i, conv in enumerate(noting.convs))
        for (name, _), conv in zip(self.calls, noting.convs, strict=True):
            setattr(self, name, conv.packed())  # a tracer finds what is an attribute

    def forward(self, *inputs: torch.Tensor) -> Any:
        """As the module."""
        calling = _Calling([(getattr(self, name), relu) for name, relu in self.calls])
        with calling:
            return self.module(*inputs)


class _Convs(TorchFunctionMode):
    """Sees convs that can be packed, and in-place ReLUs that come next."""

    last: torch.Tensor | None = None

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(x, Halves) for x in args):
            with self:  # it calls the convs of its parts
                return Halves.__torch_function__(func, types, args, kwargs)
        if args and args[0] is self.last and _relu(func, args, kwargs):
            return self.relu()
        conv = _conv(Conv2d(*args, **kwargs)) if func is torch.conv2d and args else None
        self.last = None if conv is None else self.conv(args[0], conv)
        return func(*args, **kwargs) if conv is None else self.last

    def conv(self, x: torch.Tensor, conv: _Conv) -> torch.Tensor:
        """What it gives."""
        raise NotImplementedError

    def relu(self) -> torch.Tensor:
        """What a ReLU makes of that, in place."""
        raise NotImplementedError


class _Noting(_Convs):
    """Notes them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs: list[_Conv] = []

    def conv(self, x: torch.Tensor, conv: _Conv) -> torch.Tensor:
        self.convs.append(conv)
        return torch.conv2d(x, conv.weight, conv.bias, *conv.how)

    def relu(self) -> torch.Tensor:
        self.convs[-1].relu = True
        return self.last.relu_()


class _Calling(_Convs):
    """Calls packed ones in their place, one after the other."""

    def __init__(self, packed: list[tuple[Any, bool]]) -> None:
        super().__init__()
        self.packed = iter(packed)
        self.fused = False  # whether the last one holds its ReLU

    def conv(self, x: torch.Tensor, conv: _Conv) -> torch.Tensor:
        packed, self.fused = next(self.packed)
        return _prepacked.conv2d_run(x, packed)

    def relu(self) -> torch.Tensor:
        return self.last if self.fused else self.last.relu_()


def _relu(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether it is one in place."""
    if func is F.relu:
        return True in (*args[1:], *kwargs.values())  # ``inplace`` is its one argument
    return func in (torch.relu_, torch.Tensor.relu_)


def _conv(call: Conv2d) -> _Conv | None:
    """The conv if it can be packed and gains by it: for one pixel PyTorch has a faster way."""
    if call.x.dim() != 4 or call.x.dtype != torch.float32 or isinstance(call.padding, str):
        return None
    size = [int(n) for n in call.x.shape]
    if size[2] * size[3] == 1:
        return None
    how = tuple([n, n] if isinstance(n, int) else list(n) for n in call[3:6])
    bias = None if call.bias is None else call.bias.detach()
    return _Conv(call.weight.detach(), bias, (*how, call.groups), size)
