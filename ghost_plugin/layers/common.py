"""Common parts of all layers: activations, padding, initialization, stochastic depth."""

import inspect
import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair


def activation(act_layer: Callable[..., nn.Module]) -> nn.Module:
    """Build an activation, in place if its class supports that."""
    try:
        in_place = 'inplace' in inspect.signature(act_layer).parameters
    except (TypeError, ValueError):  # builtins without a signature
        in_place = False
    return act_layer(inplace=True) if in_place else act_layer()


def same_padding(kernel_size: int | tuple[int, int], dilation: int = 1) -> tuple[int, int]:
    """Padding that keeps height and width at stride 1, for odd kernels.

    Args:
        kernel_size: Pixels.
        dilation: Pixels.
    """
    height, width = _pair(kernel_size)
    return dilation * (height // 2), dilation * (width // 2)


def check_positive(**values: int) -> None:
    """Raise unless each value is an integer of 1 or more; the keyword is its name."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f'{name} must be an integer, got {value!r}')
        if value < 1:
            raise ValueError(f'{name} must be 1 or more, got {value!r}')


def check_module(model: nn.Module) -> None:
    """Raise TypeError unless ``model`` is a module; its name or class is not one."""
    if not isinstance(model, nn.Module):
        given = repr(model) if isinstance(model, str | type) else type(model).__name__
        raise TypeError(f'a model must be a torch.nn.Module, got {given}; build it first')


# Quantiles of a Laplace distribution of variance 1. Channels differ in variance, so that values of
# feature maps are more often small or large than those of a normal distribution.
_SHARES = [(index + 0.5) / 64 for index in range(64)]
_QUANTILES = [math.copysign(math.log(1 - 2 * abs(s - 0.5)) / 1.37, 0.5 - s) for s in _SHARES]


@torch.no_grad()
def draw_weights(layer: Any, moment: float = 1.0, variance: float = 1.0) -> None:
    """Draw initial weights that give outputs of a chosen variance; the bias becomes zero.

    One rule holds for all networks here: every norm sees a variance of about 1, the value that
    running statistics start with, so that eval mode works before training and after few steps.
    With random weights of mean 0 the variance of the outputs is the mean square of the inputs times
    the squared length of a kernel. Each conv is therefore drawn for the mean square at its place:
    one half behind a ReLU, a quarter of it behind a gate, more behind a shortcut. Convs whose
    outputs are summed share the variance of the sum.

    Source: He et al., ICCV 2015 (arXiv 1502.01852). Changed against it: the fan-in of groups, the
    mean square by place, kernels of equal length.

    Args:
        layer: An ``nn.Conv2d`` or ``nn.Linear``; its weights are drawn in place.
        moment: Mean square of its inputs.
        variance: Variance of its outputs.
    """
    weight: torch.Tensor = layer.weight
    nn.init.normal_(weight)  # without its result: transformers replaces it while it loads a file
    axes = tuple(range(1, weight.ndim))
    length = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    weight.mul_(math.sqrt(variance / moment) / length)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def second_moment(act: nn.Module, variance: float, shortcut: float = 0.0) -> float:
    """Mean square of the outputs of an activation for random inputs with mean 0.

    Args:
        act: An elementwise activation.
        variance: Variance of the inputs.
        shortcut: Mean square of what is added to them, itself the output of such an activation.
    """
    parameter = next(act.parameters(), None)
    if parameter is not None and parameter.is_meta:
        return (variance + shortcut) / 2
    like = torch.empty(0, device='cpu') if parameter is None else parameter
    values = like.new_tensor(_QUANTILES)
    made = act(values.view(1, 1, -1, 1).clone())
    made = made * math.sqrt(shortcut / made.square().mean().item())
    return act(math.sqrt(variance) * values + made).square().mean().item()


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
