"""Small parts that every layer shares: activations, padding, init, stochastic depth."""

import inspect
from collections.abc import Callable
from numbers import Integral

import torch
from torch import nn
from torch.nn.modules.utils import _pair


def activation(act_layer: Callable[..., nn.Module]) -> nn.Module:
    """Build an activation, in place where it can be."""
    try:
        in_place = 'inplace' in inspect.signature(act_layer).parameters
    except (TypeError, ValueError):  # builtins without a signature
        in_place = False
    return act_layer(inplace=True) if in_place else act_layer()


def same_padding(kernel_size: int | tuple[int, int], dilation: int = 1) -> tuple[int, ...]:
    """Padding in pixels that keeps the map's size at stride 1, for odd kernels."""
    return tuple(dilation * (side // 2) for side in _pair(kernel_size))


def check_positive(**values: int) -> None:
    """Raise unless each value is an integer of 1 or more; the keyword is its name."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f'{name} must be an integer, got {value!r}')
        if value < 1:
            raise ValueError(f'{name} must be 1 or more, got {value!r}')


def check_module(model: nn.Module) -> None:
    """Raise TypeError unless it is a network: its name and its class are none."""
    if not isinstance(model, nn.Module):
        given = repr(model) if isinstance(model, str | type) else type(model).__name__
        raise TypeError(f'a model must be a torch.nn.Module, got {given}; build it first')


def init_weights(module: nn.Module) -> None:
    """Kaiming normal by fan-out for convs, zero bias; small normal for classifiers.

    Source: He et al., ICCV 2015 (arXiv 1502.01852). Norm layers keep torch's ones and zeros.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode='fan_out', nonlinearity='relu')
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch of some samples while training.

    Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016 (arXiv 1603.09382).

    Args:
        rate: Share of samples whose branch is dropped, 0 up to but not including 1.

    Shape:
        (N, C, H, W) -> (N, C, H, W)
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < keep
        return x * mask.to(x.dtype) / keep

    def extra_repr(self) -> str:
        return f'rate={self.rate:g}'
