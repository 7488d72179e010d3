"""Replace Ghost layers and depthwise convs of a fused network by Triton kernels if faster."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...layers.ghost import Ghost
from ...layers.permutation import Permuted
from ...profiling import time_together
from ...utils.modules import call_model, eval_mode, removing_hooks
from . import triton_kernels

CALLS = 10  # per timed CUDA graph, so that its launch time is negligible


class TritonDepthwise(nn.Module):
    """A depthwise conv by :func:`ghost_plugin.deploy.kernels.triton_kernels.depthwise`.

    Args:
        conv: Depthwise, with zero padding that keeps the image size up to the stride.

    Shape:
        As the conv.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.size, self.channels = list(conv.kernel_size), conv.out_channels
        self.stride, self.dilation = conv.stride[0], conv.dilation[0]
        self.register_buffer('taps', _taps(conv))
        self.register_buffer('bias', _bias(conv))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return triton_kernels.depthwise(x, self.bias, self.taps, self.bias, None, self.channels,
                                 self.size, self.stride, self.dilation, False, False)  # fmt: skip


class TritonGhost(Permuted):
    """A Ghost layer that writes its output channels once, without a concatenation.

    Args:
        ghost: A fused Ghost layer, see :func:`candidates`.
        whole: One kernel computes all of it, which needs a 1x1 primary conv; otherwise cuDNN
            computes the primary conv and one kernel the rest.

    Shape:
        As the Ghost layer.
    """

    def __init__(self, ghost: Ghost, whole: bool) -> None:
        super().__init__()
        (conv, self.relu), (cheap, _) = _parts(ghost.primary_conv), _parts(ghost.cheap_operation)
        self.conv = None if whole else _aligned(conv)
        self.outputs, self.dilation = ghost.out_channels, cheap.dilation[0]
        self.size = list(cheap.kernel_size)
        self.short_conv = getattr(ghost, 'short_conv', None)
        order = getattr(ghost, 'order', None)
        if order is not None:  # it selects the output channels
            self.outputs = ghost.num_computed()
        self.order = order
        shift = getattr(ghost, 'shift', None)
        self.register_buffer(
            'weight', conv.weight.detach().flatten(1).contiguous() if whole else None
        )
        self.register_buffer('bias', _bias(conv))
        # Zero rows for primary channels without ghosts; those ghosts are not computed.
        rest = (0, (ghost.primary - ghost.num_ghosted) * ghost.ghosts_per_group)
        self.register_buffer('taps', F.pad(_taps(cheap), rest))
        self.register_buffer('cheap_bias', F.pad(_bias(cheap), rest))
        self.register_buffer('shift', None if shift is None else shift.detach().flatten().float())

    def num_computed(self) -> int:
        return self.outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        rest = (self.bias, self.taps, self.cheap_bias, self.shift, self.outputs)
        if self.conv is None:
            out = triton_kernels.ghost(
                x, self.weight, *rest, self.size[0], self.dilation, self.relu
            )
        else:
            primary = self.conv(x).contiguous(memory_format=torch.channels_last)
            out = triton_kernels.depthwise(
                primary, *rest, self.size, 1, self.dilation, self.relu, True
            )
        out = self.permute(out)
        return out if self.short_conv is None else self.short_conv(x, out)


def _parts(module: nn.Module) -> tuple[nn.Module | None, bool]:
    """Return the conv of a folded part, and whether a ReLU follows; None for other parts."""
    parts = list(module) if isinstance(module, nn.Sequential) else [module]
    conv, *behind = [part for part in parts if type(part) is not nn.Identity] or [None]
    known = type(conv) is nn.Conv2d and conv.padding_mode == 'zeros'  # others pad in their forward
    if not known or [type(part) for part in behind] not in ([], [nn.ReLU]):
        return None, False
    return conv, bool(behind)


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Return whether the kernels support a depthwise conv."""
    sizes = zip(conv.kernel_size, conv.dilation, strict=True)
    padding = tuple(size // 2 * dilation for size, dilation in sizes)
    odd = all(size % 2 for size in conv.kernel_size)
    even = len(set(conv.stride)) == len(set(conv.dilation)) == 1
    return conv.groups == conv.in_channels and odd and even and conv.padding == padding


def _taps(conv: nn.Conv2d) -> torch.Tensor:
    """Return (taps, channels) of a depthwise conv, float32."""
    return conv.weight.detach().flatten(1).t().contiguous().float()


def _bias(conv: nn.Conv2d) -> torch.Tensor:
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    return bias.detach().float()


def _aligned(conv: nn.Conv2d) -> nn.Conv2d:
    """Copy a conv without its bias, with zero channels appended up to a multiple of ALIGNED."""
    more = -conv.out_channels % triton_kernels.ALIGNED if conv.groups == 1 else 0
    new = nn.utils.skip_init(
        nn.Conv2d, conv.in_channels, conv.out_channels + more, conv.kernel_size, conv.stride,
        conv.padding, conv.dilation, conv.groups, bias=False,
    )  # fmt: skip
    new.weight = nn.Parameter(F.pad(conv.weight.detach(), (0, 0) * 3 + (0, more)), False)
    return new.to(memory_format=torch.channels_last).eval()


def candidates(module: nn.Module) -> Iterator[nn.Module]:
    """Yield replacements for a layer of a fused network."""
    if type(module) is nn.Conv2d and module.padding_mode == 'zeros':
        if module.groups == module.in_channels > 1 and _keeps_size(module):
            yield TritonDepthwise(module)
    if not isinstance(module, Ghost) or not module.ghosts_per_group or not _known(module):
        return
    yield TritonGhost(module, whole=False)
    conv, _ = _parts(module.primary_conv)
    square = len(set(_parts(module.cheap_operation)[0].kernel_size)) == 1
    point = conv.kernel_size == conv.stride == (1, 1) and conv.padding in ((0, 0), 'valid', 'same')
    if square and point and conv.groups == 1:
        yield TritonGhost(module, whole=True)


def _known(ghost: Ghost) -> bool:
    (conv, relu), (cheap, also) = _parts(ghost.primary_conv), _parts(ghost.cheap_operation)
    if conv is None or cheap is None or relu != also or getattr(ghost, 'scale', None) is not None:
        return False
    return cheap.stride == (1, 1) and cheap.groups == ghost.num_ghosted and _keeps_size(cheap)


def accelerate(model: nn.Module, example_input: Any) -> list[str]:
    """Replace layers by kernels where these are faster on this GPU, in place.

    Args:
        model: Fused, channels-last, on a GPU.
        example_input: Its shapes are timed.

    Returns:
        Names of the layers that were replaced.
    """
    changed = []
    for name, x in _inputs(model, example_input).items():
        layer = model.get_submodule(name)
        best = _fastest([layer, *candidates(layer)], x)
        if best is not layer:
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, best)
            changed.append(name)
    return changed


def _inputs(model: nn.Module, example_input: Any) -> dict[str, torch.Tensor]:
    """Record the input of each layer that has a replacement."""
    seen: dict[str, torch.Tensor] = {}

    def _record(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        seen[name] = given[0]

    named = {n: m for n, m in model.named_modules() if n and next(candidates(m), None) is not None}
    parts = ('primary_conv', 'cheap_operation')
    inside = tuple(
        f'{n}.{part}' for n, m in named.items() if isinstance(m, Ghost) for part in parts
    )
    handles = [
        module.register_forward_pre_hook(functools.partial(_record, name))
        for name, module in named.items()
        if not name.startswith(inside)
    ]
    with removing_hooks(*handles), eval_mode(model):
        call_model(model, example_input)
    return seen


def _fastest(layers: list[nn.Module], x: torch.Tensor) -> nn.Module:
    if len(layers) == 1:
        return layers[0]
    tasks = {str(i): _replay(layer.to(x.device), x) for i, layer in enumerate(layers)}
    timings = time_together(tasks, rounds=8, warmup=2)
    return layers[int(min(timings, key=lambda timing: timing.median).name)]


def _replay(layer: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Callable[[], None]:
    """Capture some calls as one CUDA graph, after a call that compiles."""
    with torch.inference_mode():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                layer(x)
    return graph.replay
