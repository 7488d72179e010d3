"""The Ghost module of the paper, and its linear form as a drop-in for ``nn.Conv2d``.

Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), section 3.1. Parameter names are those
of the authors' code and of timm, so published weights fit. Changed against both: any ratio, also
fractional; only as many ghost maps as the output needs; three cheap operations.
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from .attention import DFCAttention
from .cheap_ops import build_cheap
from .common import activation, check_positive, draw_weights, same_padding, second_moment
from .permutation import Permuted


def split_channels(out_channels: int, ratio: float, groups: int = 1) -> tuple[int, int]:
    """How many maps a convolution makes, and how many ghost maps each of them gets.

    Args:
        out_channels: Maps wanted (n in the paper).
        ratio: Output maps per convolved map (s in the paper), 1 or more.
        groups: The convolved maps are a multiple of this.

    Returns:
        (m, copies): m = ceil(n / s), rounded up to the groups, and the smallest ``copies`` with
        m * (copies + 1) >= n; what is over is cut off behind the concatenation.
    """
    if not isinstance(ratio, Real) or isinstance(ratio, bool):
        raise TypeError(f'ratio must be a number of 1 or more, got {ratio!r}')
    if not 1 <= ratio < math.inf:
        raise ValueError(f'ratio must be 1 (an ordinary conv) or more and finite, got {ratio!r}')
    primary = math.ceil(math.ceil(out_channels / ratio) / groups) * groups
    return primary, math.ceil(out_channels / primary) - 1


def served_channels(out_channels: int, ratio: float, groups: int = 1) -> int:
    """How many of the convolved maps of a Ghost conv get ghosts, the first ones.

    Below a ratio of 2 there are fewer ghosts than convolved maps, and only the kernels that are
    used are made; with groups or more ghosts per map all maps have theirs.
    """
    primary, copies = split_channels(out_channels, ratio, groups)
    return out_channels - primary if copies == groups == 1 else primary


class Ghost(nn.Module):
    """What all forms share: primary maps, ghost maps, concatenation, cut."""

    def __init__(
        self, out_channels: int, primary: int, copies: int, served: int | None = None
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.primary, self.copies = primary, copies
        self.served = primary if served is None else served
        self.cut = self.made() > out_channels

    def made(self) -> int:
        """Maps that are computed, before some are cut off or an order picks."""
        return self.primary + self.served * self.copies

    def ghosts(self, primary: torch.Tensor) -> torch.Tensor:
        """Ghost maps of the first primary maps."""
        if self.served < self.primary:
            primary = primary[..., : self.served, :, :]
        return self.cheap_operation(primary)

    def concat(self, primary: torch.Tensor, ghosts: torch.Tensor) -> torch.Tensor:
        """Concatenate and cut to the output channels."""
        maps = torch.cat((primary, ghosts), dim=-3)
        # A plain slice: converters to other runtimes seldom know Tensor.narrow.
        return maps[..., : self.out_channels, :, :] if self.cut else maps

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """All output maps."""
        primary = self.primary_conv(x)
        if self.copies == 0:
            return primary
        return self.concat(primary, self.ghosts(primary))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maps(x)


class GhostModule(Ghost):
    """One map in ``ratio`` by convolution, the others by a cheap operation; norm and act inside.

    Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), section 3.1, figure 2.

    Args:
        in_channels: Input maps (c).
        out_channels: Output maps (n).
        kernel_size: Of the primary conv (k), pixels; odd sizes keep the map's size.
        ratio: Output maps per convolved map (s), 1 or more; 1 is an ordinary conv block.
        dw_size: Side of the depthwise kernel (d), odd, pixels.
        stride: Of the primary conv.
        relu: Whether the activation follows each norm.
        dilation: Of the primary conv.
        dw_dilation: Of the cheap depthwise conv.
        cheap: ``'depthwise'``, ``'shift'`` (by one pixel, no parameters) or ``'linear'`` (a scale
            and a bias per map).
        norm_layer: Called with the number of maps.
        act_layer: Called without arguments, or with ``inplace=True`` where it takes that.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        ValueError: ``ratio`` below 1, an even ``dw_size``, an unknown ``cheap``, channels below 1.
        TypeError: A number is not a number.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        ratio: float = 2,
        dw_size: int = 3,
        stride: int = 1,
        relu: bool = True,
        *,
        dilation: int = 1,
        dw_dilation: int = 1,
        cheap: str = 'depthwise',
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act_layer: Callable[..., nn.Module] = nn.ReLU,
    ) -> None:
        check_positive(
            in_channels=in_channels, out_channels=out_channels, stride=stride, dilation=dilation
        )
        primary, copies = split_channels(out_channels, ratio)
        super().__init__(out_channels, primary, copies)
        padding = same_padding(kernel_size, dilation)
        conv = nn.Conv2d(
            in_channels, primary, kernel_size, stride, padding, dilation=dilation, bias=False
        )
        act = act_layer if relu else nn.Identity
        self.primary_conv = nn.Sequential(conv, norm_layer(primary), activation(act))
        cheap_op = build_cheap(cheap, primary, copies, dw_size, dw_dilation)
        if copies:
            ghosts = primary * copies
            cheap_op = nn.Sequential(cheap_op, norm_layer(ghosts), activation(act))
        self.cheap_operation = cheap_op
        GhostModule.initialize(self)  # a subclass is not complete yet

    def initialize(self, moment: float = 1.0, variance: float = 1.0) -> float:
        """Draw first weights that keep the variance, see :func:`draw_weights`.

        Args:
            moment: Mean square of the inputs.
            variance: Of the maps in front of the activation.

        Returns:
            Mean square of the outputs.
        """
        conv, _, act = self.primary_conv
        draw_weights(conv, moment, variance)
        made = second_moment(act, variance)
        if self.copies and isinstance(self.cheap_operation[0], nn.Conv2d):
            draw_weights(self.cheap_operation[0], made, variance)
        return made


class GhostModuleV2(GhostModule):
    """Ghost module whose maps are scaled by decoupled fully connected attention.

    Source: Tang et al., GhostNetV2, NeurIPS 2022 (arXiv 2211.12905), section 3.3.

    Args:
        in_channels: Input maps.
        out_channels: Output maps.
        norm_layer: Called with the number of maps.
        kwargs: As :class:`GhostModule`.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *args: Any,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, *args, norm_layer=norm_layer, **kwargs)
        self.short_conv = DFCAttention(in_channels, out_channels, norm_layer)

    def initialize(self, moment: float = 1.0, variance: float = 1.0) -> float:
        """As :meth:`GhostModule.initialize`, with the attention."""
        return super().initialize(moment, variance) * self.short_conv.initialize(moment)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.short_conv(x, self.maps(x))


class GhostConv2d(Ghost, Permuted):
    """Drop-in for ``nn.Conv2d``: the same arguments, linear, no norm and no activation inside.

    Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), equation 3, with the cheap
    operation kept linear so that the model's own norm and activation can stay where they are.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
        padding_mode: As in ``nn.Conv2d``; all but ``padding_mode`` act on the primary conv only.
            With groups the convolved maps are rounded up to a multiple of them, so a depthwise
            conv stays what it is.
        ratio: Output maps per convolved map, 1 or more. Below 2 only the first convolved maps get a
            ghost each, as many as there are outputs left.
        dw_size: Side of the depthwise kernel, odd, pixels.
        cheap: ``'depthwise'``, ``'shift'`` or ``'linear'``.
        permuted: Whether a stored order of the output maps follows; a converted conv has its
            maps in the order of the conv that it stands for.
        conv_layer: Class of the primary conv, with the arguments of ``nn.Conv2d``.
        device, dtype: Of the weights.

    Shape:
        As ``nn.Conv2d`` with the same arguments.

    Raises:
        ValueError: As :class:`GhostModule`, and whatever ``nn.Conv2d`` refuses.
    """

    transposed = False
    output_padding = (0, 0)
    # What a conversion sets: makes this layer's weights out of those of the dense conv that it
    # stands for, in a state dict, in place.
    adopt: Callable[['GhostConv2d', dict[str, Any], str], None] | None = None
    place: str = ''  # name of the dense conv in its network, for messages

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        *,
        ratio: float = 2,
        dw_size: int = 3,
        cheap: str = 'depthwise',
        permuted: bool = False,
        conv_layer: type[nn.Conv2d] = nn.Conv2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if out_channels % groups:
            raise ValueError(f'out_channels {out_channels} must be divisible by groups {groups}')
        primary, copies = split_channels(out_channels, ratio, groups)
        served = served_channels(out_channels, ratio, groups)
        super().__init__(out_channels, primary, copies, served)
        self.in_channels = in_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        self.ratio = ratio
        self.cut = self.cut and not permuted  # the order picks the maps that are used
        # Subclasses of other libraries take no padding mode.
        mode = {} if padding_mode == 'zeros' else {'padding_mode': padding_mode}
        self.primary_conv = conv_layer(
            in_channels, primary, kernel_size, stride, padding, dilation, groups, bias, **mode
        )
        self.cheap_operation = build_cheap(
            cheap, served, copies, dw_size, bias=bias, padding_mode=padding_mode
        )
        if isinstance(self.cheap_operation, nn.Conv2d):
            draw_weights(self.cheap_operation)  # ghosts vary as much as what they are made from
        self.order = torch.arange(out_channels) if permuted else None
        self.to(device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.permuted(self.maps(x))

    def accept(self, weights: dict[str, Any], prefix: str) -> None:
        """Turn the dense conv's weights in a state dict into this layer's own."""
        if self.adopt is not None and f'{prefix}weight' in weights:
            self.adopt(self, weights, prefix)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        self.accept(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getattr__(self, name: str) -> Any:
        if name in ('weight', 'bias', 'reset_parameters'):
            raise AttributeError(
                (f'the Ghost conv {self.place!r} ' if self.place else 'a Ghost conv ')
                + f'has no {name} of its own, there is one in primary_conv and in cheap_operation. '
                'What asks for it is mostly: weight initialisation by class names '
                "('Conv' in type(m).__name__) or by init_weights of OpenMMLab; weight decay "
                'groups; spectral and weight norm; efficient_conv_bn_eval. Ask for isinstance(m, '
                'nn.Conv2d) instead, which finds the convs inside; initialise (init_weights) '
                'before the conversion; exclude this conv from the plan; or switch off what needs '
                'it (efficient_conv_bn_eval)'
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        return f'{self.in_channels}, {self.out_channels}, ratio={self.ratio:g}'
