"""The Ghost module of the paper, and its linear form as a drop-in for ``nn.Conv2d``.

Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), section 3.1. Parameter names are those
of the authors' code and of timm, so published weights fit. Changed against both: any ratio, also
fractional; only as many ghost channels as the output needs; three cheap operations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from .attention import DFCAttention
from .cheap_ops import build_cheap, check_group_size
from .common import activation, check_positive, draw_weights, same_padding, second_moment
from .permutation import Permuted


def split_channels(out_channels: int, ratio: float, groups: int = 1) -> tuple[int, int]:
    """Numbers of primary channels and of ghosts per primary channel.

    Args:
        out_channels: Output channels (n in the paper).
        ratio: Output channels per primary channel (s in the paper), 1 or more.
        groups: The primary channels are a multiple of this.

    Returns:
        (m, ghosts_per_group): m = ceil(n / s), rounded up to the groups, and the smallest
        ``ghosts_per_group`` with m * (ghosts_per_group + 1) >= n. Surplus channels are cropped
        behind the concatenation.
    """
    if not isinstance(ratio, Real) or isinstance(ratio, bool):
        raise TypeError(f'ratio must be a number of 1 or more, got {ratio!r}')
    if not 1 <= ratio < math.inf:
        raise ValueError(f'ratio must be 1 (an ordinary conv) or more and finite, got {ratio!r}')
    primary = math.ceil(math.ceil(out_channels / ratio) / groups) * groups
    return primary, math.ceil(out_channels / primary) - 1


@dataclass(frozen=True)
class GhostLayout:
    """Numbers of channels of a Ghost layer.

    Attributes:
        primary: Primary channels.
        num_ghosted: Number of primary channels that have ghosts, the first ones.
        group_size: Consecutive primary channels per group; 1 where there are no ghosts.
        ghosts_per_group: Ghosts of each group. Ghost ``o`` mixes the primary channels of group
            ``o // ghosts_per_group``.
    """

    primary: int
    num_ghosted: int
    group_size: int
    ghosts_per_group: int

    @property
    def ghosts(self) -> int:
        """Number of ghosts that are computed; surplus ones are cropped or not selected."""
        return self.num_ghosted // self.group_size * self.ghosts_per_group


def ghost_layout(
    out_channels: int, ratio: float, groups: int = 1, group_size: int | str = 1
) -> GhostLayout:
    """Numbers of channels of a Ghost conv.

    The primary channels are cut into groups, and the ghosts are shared out among these as evenly
    as possible. Where there are fewer ghosts than groups only the kernels that are used are made.
    With groups of the primary conv, or with more ghosts per primary channel, all have ghosts.

    Args:
        out_channels, ratio, groups: As :func:`split_channels`.
        group_size: Number of primary channels that each ghost mixes, or ``'all'``.

    Raises:
        ValueError: More than 1 with groups, or more than there are primary channels.
    """
    check_group_size(group_size)
    primary, ghosts_per_primary = split_channels(out_channels, ratio, groups)
    ghosts = out_channels - primary
    if group_size == 1 or not ghosts:
        few = ghosts_per_primary == groups == 1
        return GhostLayout(primary, ghosts if few else primary, 1, ghosts_per_primary)
    if groups > 1:
        raise ValueError(
            f'group_size={group_size!r} needs a conv with groups=1, got groups={groups}, which '
            'allow group_size=1 only'
        )
    size = primary if isinstance(group_size, str) else group_size
    if size > primary:
        raise ValueError(
            f'group_size={group_size} is more than the {primary} primary channels of '
            f"out_channels={out_channels} at ratio={ratio:g}; give at most {primary}, or 'all'"
        )
    ghosts_per_group = math.ceil(ghosts / (primary // size))
    return GhostLayout(primary, math.ceil(ghosts / ghosts_per_group) * size, size, ghosts_per_group)


# Attributes in older pickles.
_OLD_NAMES = {
    'adopt': 'convert_dense_weights',
    'copies': 'ghosts_per_group',
    'ghosts_per_primary': 'ghosts_per_group',
    'cut': 'needs_crop',
    'place': 'dense_name',
    'served': 'num_ghosted',
}


class Ghost(nn.Module):
    """Common part of all Ghost layers: primary channels, ghost channels, concatenation, crop.

    Attributes:
        out_channels: Output channels.
        primary: Primary channels, computed by ``primary_conv``.
        num_ghosted, group_size, ghosts_per_group: As in :class:`GhostLayout`.
        needs_crop: Whether more channels are computed than returned.
    """

    if TYPE_CHECKING:  # set by subclasses; TorchScript refuses annotations of modules
        primary_conv: Any
        cheap_operation: Any

    def __init__(self, out_channels: int, layout: GhostLayout) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.primary, self.num_ghosted = layout.primary, layout.num_ghosted
        self.group_size, self.ghosts_per_group = layout.group_size, layout.ghosts_per_group
        self.needs_crop = self.num_computed() > out_channels

    def __setstate__(self, state: dict[str, Any]) -> None:
        renamed = {_OLD_NAMES.get(name, name): value for name, value in state.items()}
        super().__setstate__({'group_size': 1, **renamed})

    def num_computed(self) -> int:
        """Number of channels that are computed, before a crop or a permutation selects some."""
        return self.primary + self.num_ghosted // self.group_size * self.ghosts_per_group

    def ghosts(self, primary: torch.Tensor) -> torch.Tensor:
        """Ghost channels of the first primary channels."""
        if self.num_ghosted < self.primary:
            primary = primary[..., : self.num_ghosted, :, :]
        return self.cheap_operation(primary)

    def concat(self, primary: torch.Tensor, ghosts: torch.Tensor) -> torch.Tensor:
        """Concatenate and crop to the output channels.

        Args:
            primary: (..., primary, H, W).
            ghosts: (..., computed ghosts, H, W).
        """
        out = torch.cat((primary, ghosts), dim=-3)
        # A plain slice: converters to other runtimes seldom know Tensor.narrow.
        return out[..., : self.out_channels, :, :] if self.needs_crop else out

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """All output channels."""
        primary = self.primary_conv(x)
        if self.ghosts_per_group == 0:
            return primary
        return self.concat(primary, self.ghosts(primary))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)


class GhostModule(Ghost):
    """Computes one channel in ``ratio`` by convolution and the others by a cheap operation.

    A norm and an activation follow each of the two.

    Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), section 3.1, figure 2.

    Args:
        in_channels: Input channels (c).
        out_channels: Output channels (n).
        kernel_size: Kernel size of the primary conv (k) in pixels; odd sizes keep height and width.
        ratio: Output channels per primary channel (s), 1 or more; 1 is an ordinary conv block.
        dw_size: Kernel size of the cheap depthwise conv (d) in pixels, odd.
        stride: Stride of the primary conv.
        relu: If True, the activation follows each norm.
        dilation: Dilation of the primary conv.
        dw_dilation: Dilation of the cheap depthwise conv.
        cheap: ``'depthwise'``, ``'shift'`` (by one pixel, no parameters) or ``'linear'`` (a scale
            and a bias per channel).
        group_size: Number of primary channels that each ghost mixes: 1 as in the paper, 2, 4, ...
            or ``'all'``; more than 1 needs ``cheap='depthwise'``.
        norm_layer: Called with the number of channels.
        act_layer: Called without arguments, or with ``inplace=True`` where it takes that.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        ValueError: ``ratio`` below 1, an even ``dw_size``, an unknown ``cheap``, channels below 1,
            a ``group_size`` above the number of primary channels or with another ``cheap``.
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
        group_size: int | str = 1,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act_layer: Callable[..., nn.Module] = nn.ReLU,
    ) -> None:
        check_positive(
            in_channels=in_channels, out_channels=out_channels, stride=stride, dilation=dilation
        )
        check_group_size(group_size, cheap)
        layout = ghost_layout(out_channels, ratio, group_size=group_size)
        primary = layout.primary
        if layout.group_size == 1:  # as in the paper, all have ghosts
            layout = replace(layout, num_ghosted=primary)
        super().__init__(out_channels, layout)
        padding = same_padding(kernel_size, dilation)
        conv = nn.Conv2d(
            in_channels, primary, kernel_size, stride, padding, dilation=dilation, bias=False
        )
        act = act_layer if relu else nn.Identity
        self.primary_conv = nn.Sequential(conv, norm_layer(primary), activation(act))
        self.cheap_operation = build_cheap(
            cheap,
            layout.num_ghosted,
            layout.ghosts_per_group,
            dw_size,
            dw_dilation,
            group_size=layout.group_size,
        )
        if layout.ghosts_per_group:
            norm = norm_layer(layout.ghosts)
            self.cheap_operation = nn.Sequential(self.cheap_operation, norm, activation(act))
        GhostModule.initialize(self)  # a subclass is not complete yet

    def initialize(self, moment: float = 1.0, variance: float = 1.0) -> float:
        """Draw initial weights that keep the variance.

        See :func:`ghost_plugin.layers.common.draw_weights`.

        Args:
            moment: Mean square of the inputs.
            variance: Variance in front of the activation.

        Returns:
            Mean square of the outputs.
        """
        conv, _, act = self.primary_conv.children()
        draw_weights(conv, moment, variance)
        made = second_moment(act, variance)
        cheap = next(self.cheap_operation.children(), None)
        if isinstance(cheap, nn.Conv2d):
            draw_weights(cheap, made, variance)
        return made


class GhostModuleV2(GhostModule):
    """Ghost module whose outputs are scaled by decoupled fully connected attention.

    Source: Tang et al., GhostNetV2, NeurIPS 2022 (arXiv 2211.12905), section 3.3.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        norm_layer: Called with the number of channels.
        args, kwargs: As :class:`GhostModule`.

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
        """Draw initial weights, those of the attention included.

        Args: As :meth:`GhostModule.initialize`.
        """
        return super().initialize(moment, variance) * self.short_conv.initialize(moment)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.short_conv(x, self.features(x))


class GhostConv2d(Ghost, Permuted):
    """Drop-in for ``nn.Conv2d``: the same arguments, linear, no norm and no activation inside.

    Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), equation 3, with the cheap
    operation kept linear so that the model's own norm and activation can stay where they are.

    Args:
        in_channels, out_channels: As in ``nn.Conv2d``.
        kernel_size, stride, padding, dilation, groups: The same, of the primary conv only.
            With groups the number of primary channels is rounded up to a multiple of them, so a
            depthwise conv stays what it is.
        bias, padding_mode: The same, of both convs.
        ratio: Output channels per primary channel, 1 or more. Below 2 only the first primary
            channels have one ghost each, as many as there are outputs left.
        dw_size: Kernel size of the cheap depthwise conv in pixels, odd.
        cheap: ``'depthwise'``, ``'shift'`` or ``'linear'``.
        group_size: Number of primary channels that each ghost mixes: 1 as in the paper, 2, 4, ...
            or ``'all'``. The cheap operation is a grouped conv, for ``'all'`` a dense one. More
            than 1 needs ``groups=1`` and ``cheap='depthwise'``. Groups are consecutive primary
            channels, and primary channels behind the last full group have no ghosts.
        permuted: If True, a channel permutation follows. A converted conv returns its channels in
            the order of the conv that it replaces.
        conv_layer: Class of the primary conv, with the arguments of ``nn.Conv2d``.
        device, dtype: Device and type of the weights.

    Shape:
        As ``nn.Conv2d`` with the same arguments.

    Raises:
        ValueError: As :class:`GhostModule`, and whatever ``nn.Conv2d`` refuses.
    """

    transposed = False
    output_padding = (0, 0)
    # Set by a conversion: in a state dict, in place, replaces the weights of the dense conv that
    # this layer stands for by weights of this layer.
    convert_dense_weights: Callable[['GhostConv2d', dict[str, Any], str], None] | None = None
    dense_name: str = ''  # name of the dense conv in its network, for messages

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
        group_size: int | str = 1,
        permuted: bool = False,
        conv_layer: type[nn.Conv2d] = nn.Conv2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if out_channels % groups:
            raise ValueError(f'out_channels {out_channels} must be divisible by groups {groups}')
        check_group_size(group_size, cheap)
        layout = ghost_layout(out_channels, ratio, groups, group_size)
        super().__init__(out_channels, layout)
        self.in_channels = in_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        self.ratio = ratio
        self.needs_crop = self.needs_crop and not permuted  # the permutation selects channels
        # Subclasses of other libraries take no padding mode.
        mode: dict[str, Any] = {} if padding_mode == 'zeros' else {'padding_mode': padding_mode}
        self.primary_conv = conv_layer(
            in_channels,
            layout.primary,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            **mode,
        )
        self.cheap_operation = build_cheap(
            cheap,
            layout.num_ghosted,
            layout.ghosts_per_group,
            dw_size,
            bias=bias,
            padding_mode=padding_mode,
            group_size=layout.group_size,
        )
        if isinstance(self.cheap_operation, nn.Conv2d):
            draw_weights(self.cheap_operation)  # ghosts have the variance of their primary channels
        self.order = torch.arange(out_channels) if permuted else None
        self.to(device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.permute(self.features(x))

    def remap_state_dict(self, weights: dict[str, Any], prefix: str) -> None:
        """Replace the dense conv's weights in a state dict by this layer's, in place.

        Args:
            weights: A state dict.
            prefix: Name of this layer in it, with a dot behind.
        """
        if self.convert_dense_weights is not None and f'{prefix}weight' in weights:
            self.convert_dense_weights(self, weights, prefix)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        self.remap_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getattr__(self, name: str) -> Any:
        if name in ('weight', 'bias', 'reset_parameters'):
            raise AttributeError(
                (f'the Ghost conv {self.dense_name!r} ' if self.dense_name else 'a Ghost conv ')
                + f'has no {name} of its own, there is one in primary_conv and in cheap_operation. '
                'The usual causes are: weight initialisation by class names '
                "('Conv' in type(m).__name__) or by init_weights of OpenMMLab; weight decay "
                'groups; spectral and weight norm; efficient_conv_bn_eval. Ask for isinstance(m, '
                'nn.Conv2d) instead, which finds the convs inside; initialise (init_weights) '
                'before the conversion; exclude this conv from the plan; or switch off what needs '
                'it (efficient_conv_bn_eval)'
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        group_size = f', group_size={self.group_size}' if self.group_size > 1 else ''
        return f'{self.in_channels}, {self.out_channels}, ratio={self.ratio:g}{group_size}'
