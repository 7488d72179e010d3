"""The bottlenecks of GhostNet V1, V2, V3 and RepGhost; parameter names are timm's (Apache-2.0)."""

from typing import Any

import torch
from torch import nn

from ..layers.attention import SqueezeExcite
from ..layers.bn_folding import Foldable
from ..layers.common import DropPath, draw_weights
from ..layers.ghost import GhostModule, GhostModuleV2
from ..layers.parallel_branches import Branch, Branches, joinable, joint_sum
from ..layers.rep_ghost import RepGhostModule
from ..layers.reparam import GhostModuleV3, Reparameterized, draw_branches, merge
from ..specs import Block, make_divisible
from .common import BRANCH_VARIANCE, Norm, Parts, depthwise_norm


class GhostBottleneck(Foldable):
    """Expanding Ghost module, strided depthwise conv (downsampling only), projecting Ghost module.

    Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), section 3.2, figure 3.

    Args:
        block: Channels, kernel, stride and dilations.
        parts: Norm, activation and options of the Ghost modules.
        drop_path: Share of samples whose branch is dropped in training.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    folds = (('conv_dw', 'bn_dw'),)

    def __init__(self, block: Block, parts: Parts, drop_path: float = 0.0) -> None:
        super().__init__()
        before, after = block.dilations
        mid, norm_layer = block.mid_channels, parts.norm_layer
        self.in_channels = block.in_channels
        self.ghost1: Any = self._expand(block, parts, dw_dilation=before)
        self.conv_dw: nn.Module = nn.Identity()
        self.bn_dw: nn.Module = self.conv_dw
        if block.downsample:
            self._add_downsampling(mid, block.kernel, block.stride, before, norm_layer)
        self.se: nn.Module = nn.Identity()
        if block.se and parts.se:
            self.se = SqueezeExcite(mid, make_divisible(mid * block.se), parts.act_layer)
        self.ghost2: Any = self._project(block, parts, relu=False, dw_dilation=after)
        self.shortcut: nn.Module = nn.Identity()
        if block.downsample or block.in_channels != block.out_channels:
            self.shortcut = nn.Sequential(
                *depthwise_norm(block.in_channels, block.kernel, block.stride, before, norm_layer),
                nn.Conv2d(block.in_channels, block.out_channels, 1, bias=False),
                norm_layer(block.out_channels),
            )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.zero_init_residual = parts.zero_init_residual

    def initialize(self, moment: float = 1.0) -> float:
        """Draw initial weights; the branch adds a variance of one half to that of the shortcut.

        A shortcut with convs has the other half, one without has the variance of the input.

        Args:
            moment: Mean square of the inputs.

        Returns:
            Mean square of the outputs.
        """
        inner = self.ghost1.initialize(moment)
        inner = self._initialize_depthwise(inner)
        if isinstance(self.se, SqueezeExcite):
            inner = self.se.initialize(inner)
        branch = self.ghost2.initialize(inner, BRANCH_VARIANCE)
        if self.zero_init_residual:
            branch = 0.0
            self.zero_init_last_norm()
        if isinstance(self.shortcut, nn.Sequential):
            draw_weights(self.shortcut[0], moment)
            moment = 1.0 if self.zero_init_residual else 1.0 - BRANCH_VARIANCE
            draw_weights(self.shortcut[2], 1.0, moment)
        return moment + branch

    def _initialize_depthwise(self, moment: float) -> float:
        """Draw the depthwise conv; returns the mean square of its outputs."""
        if isinstance(self.conv_dw, nn.Identity):
            return moment
        draw_weights(self.conv_dw, moment)
        return 1.0

    def _expand(self, block: Block, parts: Parts, **kwargs: Any) -> nn.Module:
        ghost = GhostModuleV2 if block.attention else GhostModule
        return ghost(block.in_channels, block.mid_channels, **kwargs, **parts.ghost())

    def _project(self, block: Block, parts: Parts, **kwargs: Any) -> nn.Module:
        return GhostModule(block.mid_channels, block.out_channels, **kwargs, **parts.ghost())

    def _add_downsampling(
        self, channels: int, kernel: int, stride: int, dilation: int, norm_layer: Norm
    ) -> None:
        self.conv_dw, self.bn_dw = depthwise_norm(channels, kernel, stride, dilation, norm_layer)

    def zero_init_last_norm(self) -> None:
        """Let the branch add nothing at the start of training."""
        for part in self.ghost2.modules():
            scale = getattr(part, 'weight', None)
            if scale is not None and scale.ndim == 1:  # belongs to a norm
                nn.init.zeros_(scale)

    def depthwise(self, x: torch.Tensor) -> torch.Tensor:
        """The step between the Ghost modules where the block downsamples."""
        return self.bn_dw(self.conv_dw(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.se(self.depthwise(self.ghost1(x)))
        # In place: no gradient needs the output of the projection.
        return self.drop_path(self.ghost2(branch)).add_(self.shortcut(x))


class GhostBottleneckV3(Reparameterized, GhostBottleneck):
    """:class:`GhostBottleneck` with parallel branches while it trains.

    Source: Liu et al., GhostNetV3 (arXiv 2404.11202), section 3.1.

    Args:
        block, parts, drop_path: As :class:`GhostBottleneck`.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    merged_names = (('conv_dw', 'dw_rpr_conv', 'dw_rpr_scale', 'dw_rpr_skip'),)

    def __init__(self, block: Block, parts: Parts, drop_path: float = 0.0) -> None:
        super().__init__(block, parts, drop_path)
        if not block.downsample:
            self.dw_rpr_conv: Any = None
            self.dw_rpr_scale: Any = None

    def _initialize_depthwise(self, moment: float) -> float:
        if self.dw_rpr_conv is None:
            return moment
        draw_branches([*self.dw_rpr_conv, self.dw_rpr_scale], moment, 1.0)
        return 1.0

    def _expand(self, block: Block, parts: Parts, **kwargs: Any) -> nn.Module:
        kwargs = {**kwargs, **_branched(parts), 'attention': block.attention}
        return GhostModuleV3(block.in_channels, block.mid_channels, **kwargs)

    def _project(self, block: Block, parts: Parts, **kwargs: Any) -> nn.Module:
        return GhostModuleV3(block.mid_channels, block.out_channels, **kwargs, **_branched(parts))

    def _add_downsampling(
        self, channels: int, kernel: int, stride: int, dilation: int, norm_layer: Norm
    ) -> None:
        self.dw_rpr_conv = Branches(
            channels, channels, kernel, norm_layer, stride, dilation, groups=channels
        )
        self.dw_rpr_scale = Branch(channels, channels, 1, norm_layer, stride, groups=channels)

    @property
    def branched(self) -> bool:
        """True while the depthwise conv has its form for training."""
        return self.dw_rpr_conv is not None

    def depthwise(self, x: torch.Tensor) -> torch.Tensor:
        if self.dw_rpr_conv is None:
            return self.conv_dw(x)
        if not torch.jit.is_scripting():
            if joinable(x, self.dw_rpr_conv, self.dw_rpr_scale):
                return joint_sum(x, self.dw_rpr_conv, self.dw_rpr_scale)
        return self.dw_rpr_conv(x) + self.dw_rpr_scale(x)

    @torch.jit.ignore
    def merge_branches(self) -> None:
        """Replace the branches of the depthwise conv by one conv."""
        self.conv_dw = merge([*self.dw_rpr_conv, self.dw_rpr_scale])
        self.dw_rpr_conv = self.dw_rpr_scale = None


class RepGhostBottleneck(GhostBottleneck):
    """:class:`GhostBottleneck` with RepGhost modules.

    Source: Chen et al., RepGhost (arXiv 2211.06088), section 3.3, figure 4.

    Args:
        block, parts, drop_path: As :class:`GhostBottleneck`.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def _expand(self, block: Block, parts: Parts, **kwargs: Any) -> nn.Module:
        return self._module(block.in_channels, block.mid_channels, parts, **kwargs)

    def _project(self, block: Block, parts: Parts, **kwargs: Any) -> nn.Module:
        return self._module(block.mid_channels, block.out_channels, parts, **kwargs)

    @staticmethod
    def _module(in_channels: int, out_channels: int, parts: Parts, **kwargs: Any) -> nn.Module:
        return RepGhostModule(
            in_channels,
            out_channels,
            dw_size=parts.dw_size,
            norm_layer=parts.norm_layer,
            act_layer=parts.act_layer,
            **kwargs,
        )

    def zero_init_last_norm(self) -> None:
        """Let the branch add nothing at the start of training."""
        self.ghost2.zero_init_norms()


def _branched(parts: Parts) -> dict[str, Any]:
    """Options of a Ghost module whose branches are depthwise convs."""
    options = parts.ghost()
    for name, only in (('cheap', 'depthwise'), ('group_size', 1)):
        if (given := options.pop(name)) != only:
            raise ValueError(
                f'GhostNetV3 merges depthwise branches, {name} must be {only!r}, got {given!r}'
            )
    return options
