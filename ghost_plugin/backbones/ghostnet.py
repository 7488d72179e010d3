"""GhostNet as a backbone: features at the end of every stride, both doors stand on this class.

Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), section 3.2 and table 1. Parameter
names are those of timm (Apache-2.0), so published weights load with ``strict=True``. Changed
against timm: taps at the last block of each stride, ``output_stride``, stochastic depth, init.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..layers.attention import SqueezeExcite
from ..layers.checkpointing import checkpointed
from ..layers.common import DropPath, activation, check_positive, init_weights, same_padding
from ..layers.ghost import GhostModule
from ..specs import (
    FINAL_LEVEL,
    GHOSTNET,
    Block,
    check_out_indices,
    layout,
    make_divisible,
)

Norm = Callable[[int], nn.Module]
Act = Callable[..., nn.Module]


class ConvNormAct(nn.Module):
    """1x1 conv, norm, activation: the final conv that a classifier head follows.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_layer: Norm, act_layer: Act
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = norm_layer(out_channels)
        self.act1 = activation(act_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act1(self.bn1(self.conv(x)))


def depthwise_norm(
    channels: int, kernel: int, stride: int, dilation: int, norm_layer: Norm
) -> tuple[nn.Conv2d, nn.Module]:
    """Depthwise conv that keeps the map's size up to the stride, and its norm."""
    padding = same_padding(kernel, dilation)
    conv = nn.Conv2d(
        channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
    )
    return conv, norm_layer(channels)


class GhostBottleneck(nn.Module):
    """Expanding Ghost module, depthwise conv where the map shrinks, projecting Ghost module.

    Source: Han et al., GhostNet, section 3.2, figure 3.

    Args:
        block: Channels, kernel, stride and dilations.
        norm_layer: Called with the number of maps.
        act_layer: Activation of the expansion and of squeeze-excite.
        drop_path: Share of samples whose branch is dropped in training.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self, block: Block, norm_layer: Norm, act_layer: Act, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        before, after = block.dilations
        kwargs = dict(norm_layer=norm_layer, act_layer=act_layer)
        mid = block.mid_channels
        self.ghost1 = GhostModule(block.in_channels, mid, dw_dilation=before, **kwargs)
        self.conv_dw = self.bn_dw = nn.Identity()
        if block.downsample:
            self.conv_dw, self.bn_dw = depthwise_norm(
                mid, block.kernel, block.stride, before, norm_layer
            )
        self.se = nn.Identity()
        if block.se:
            self.se = SqueezeExcite(mid, make_divisible(mid * block.se), act_layer)
        self.ghost2 = GhostModule(mid, block.out_channels, relu=False, dw_dilation=after, **kwargs)
        self.shortcut = nn.Identity()
        if block.downsample or block.in_channels != block.out_channels:
            self.shortcut = nn.Sequential(
                *depthwise_norm(block.in_channels, block.kernel, block.stride, before, norm_layer),
                nn.Conv2d(block.in_channels, block.out_channels, 1, bias=False),
                norm_layer(block.out_channels),
            )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.se(self.bn_dw(self.conv_dw(self.ghost1(x))))
        return self.drop_path(self.ghost2(branch)) + self.shortcut(x)


class GhostNet(nn.Module):
    """GhostNet that returns features at the levels asked for.

    Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), table 1.

    Args:
        width: Multiplier of all channels, above 0; published are 0.5, 1.0 and 1.3.
        in_channels: Channels of the image.
        out_indices: Levels to return: 0..4 are strides 2, 4, 8, 16, 32, each the last block of
            its stride; 5 is the final 1x1 conv that a classifier head follows. What lies behind
            the deepest level is not built.
        output_stride: 8, 16 or 32; deeper strides become dilations of the depthwise convs.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        norm_layer: Called with the number of maps.
        act_layer: Called without arguments, or with ``inplace=True`` where it takes that.
        grad_checkpointing: Compute inner maps again in backward instead of keeping them.

    Shape:
        (N, in_channels, H, W) -> tuple of (N, out_channels[i], ceil(H / out_strides[i]),
        ceil(W / out_strides[i])); any H and W of 1 or more.

    Raises:
        ValueError: A value out of its range. TypeError: A value of a wrong kind.
    """

    spec = GHOSTNET
    block = GhostBottleneck

    def __init__(
        self,
        width: float = 1.0,
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: int = 32,
        drop_path_rate: float = 0.0,
        norm_layer: Norm = nn.BatchNorm2d,
        act_layer: Act = nn.ReLU,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(
                f'drop_path_rate must be within 0..1, 1 excluded, got {drop_path_rate!r}'
            )
        self.out_indices = check_out_indices(out_indices)
        self.layout = layout(self.spec, width, output_stride)
        self.grad_checkpointing = grad_checkpointing
        self.taps = [self.layout.tap(level) for level in self.out_indices]
        self.out_channels = [self.layout.channels(level) for level in self.out_indices]
        self.conv_stem = nn.Conv2d(in_channels, self.layout.stem, 3, 2, 1, bias=False)
        self.bn1 = norm_layer(self.layout.stem)
        self.act1 = activation(act_layer)
        self.blocks = nn.Sequential(*self._stages(norm_layer, act_layer, drop_path_rate))
        init_weights(self)

    def _stages(self, norm_layer: Norm, act_layer: Act, drop_path_rate: float) -> list[nn.Module]:
        """Stages up to the deepest tap; the final conv is one more stage behind the blocks."""
        depth = sum(len(rows) for rows in self.layout.stages)
        rates = iter(torch.linspace(0, drop_path_rate, depth).tolist())
        stages = [
            nn.Sequential(*(self.block(row, norm_layer, act_layer, next(rates)) for row in rows))
            for rows in self.layout.stages[: self.taps[-1] + 1]
        ]
        if self.out_indices[-1] == FINAL_LEVEL:
            last = self.layout.channels(FINAL_LEVEL - 1)
            final = ConvNormAct(last, self.layout.final, norm_layer, act_layer)
            stages.append(nn.Sequential(final))
        return stages

    def trunk(
        self, x: torch.Tensor, taps: list[int], depth: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The stem and the first ``depth`` stages; the outputs of the stages in ``taps``."""
        x = self.act1(self.bn1(self.conv_stem(x)))
        features: list[torch.Tensor] = []
        for index, stage in enumerate(self.blocks):
            if index < depth:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpointed(stage, x)
                else:
                    x = stage(x)
                if index in taps:
                    features.append(x)
        return x, features

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _, features = self.trunk(x, self.taps, len(self.blocks))
        return tuple(features)
