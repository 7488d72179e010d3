"""GhostNet V1, V2, V3 and RepGhostNet with features at the end of every stride.

Parameter names are those of timm (Apache-2.0), so published weights load with ``strict=True``.
Changed against timm: taps at the last block of each stride, ``output_stride``, stochastic depth,
init, any input size, every option of the Ghost modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..layers.bn_folding import Foldable, merge_branches
from ..layers.common import activation, check_positive, draw_weights, second_moment
from ..specs import (
    FINAL_LEVEL,
    GHOSTNET,
    GHOSTNET_V2,
    REPGHOSTNET,
    check_out_indices,
    check_rate,
    layout,
)
from .bottlenecks import GhostBottleneck, GhostBottleneckV3, RepGhostBottleneck
from .common import Act, ConvNormAct, Norm, Parts, Stages, drop_path_rates


class GhostNet(Foldable):
    """GhostNet that returns features at the levels asked for.

    Initial weights keep variances near 1 from block to block in eval mode, see
    :func:`ghost_plugin.layers.common.draw_weights`.

    Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), table 1.

    Args:
        width: Multiplier of all channels, above 0; published are 0.5, 1.0 and 1.3.
        in_channels: Channels of the image.
        out_indices: Levels to return: 0..4 are strides 2, 4, 8, 16, 32, each the last block of
            its stride; 5 is the final 1x1 conv that a classifier head follows. Blocks behind the
            deepest level are not built.
        output_stride: 8, 16 or 32; deeper strides become dilations of the depthwise convs.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        norm_layer: Called with the number of channels.
        act_layer: Called without arguments, or with ``inplace=True`` where it takes that.
        ratio, dw_size, cheap, group_size: Options of all Ghost modules, see
            :class:`ghost_plugin.GhostModule`.
        se: Use squeeze-excite in the blocks that have it in the paper.
        stem_stride: 2, or 1 for small images, which makes all strides half as large.
        grad_checkpointing: Compute activations again in backward instead of keeping them.
        zero_init_residual: Start blocks as their shortcuts alone, with zero scales of their last
            norms; Goyal et al. (arXiv 1706.02677), section 5.1.

    Shape:
        (N, in_channels, H, W) -> tuple of (N, out_channels[i], ceil(H / out_strides[i]),
        ceil(W / out_strides[i])); any H and W of 1 or more.

    Raises:
        ValueError: A value out of its range.
        TypeError: A value of a wrong kind.
    """

    spec = GHOSTNET
    block = GhostBottleneck
    folds = (('conv_stem', 'bn1'),)

    def __init__(
        self,
        width: float = 1.0,
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: int = 32,
        drop_path_rate: float = 0.0,
        norm_layer: Norm = nn.BatchNorm2d,
        act_layer: Act = nn.ReLU,
        ratio: float = 2,
        dw_size: int = 3,
        cheap: str = 'depthwise',
        se: bool = True,
        stem_stride: int = 2,
        grad_checkpointing: bool = False,
        zero_init_residual: bool = False,
        group_size: int | str = 1,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels)
        check_rate('drop_path_rate', drop_path_rate)
        self.out_indices = check_out_indices(out_indices)
        self.layout = layout(self.spec, width, output_stride, stem_stride)
        self.grad_checkpointing = grad_checkpointing
        self.level_taps = [self.layout.tap(level) for level in range(FINAL_LEVEL + 1)]
        self.level_channels = self.layout.channels
        self.taps = [self.level_taps[level] for level in self.out_indices]
        self.out_channels = [self.level_channels[level] for level in self.out_indices]
        self.conv_stem = nn.Conv2d(in_channels, self.layout.stem, 3, stem_stride, 1, bias=False)
        self.bn1 = norm_layer(self.layout.stem)
        self.act1 = activation(act_layer)
        parts = Parts(
            norm_layer=norm_layer,
            act_layer=act_layer,
            ratio=ratio,
            dw_size=dw_size,
            cheap=cheap,
            group_size=group_size,
            se=se,
            zero_init_residual=zero_init_residual,
        )
        self.blocks = Stages(*self._stages(parts, drop_path_rate))
        self.initialize()

    def initialize(self) -> None:
        """Draw initial weights that give all blocks outputs with a variance of order one."""
        draw_weights(self.conv_stem)
        moment = second_moment(self.act1, 1.0)
        blocks: list[Any] = [block for stage in self.blocks for block in stage.children()]
        for block in blocks:
            moment = block.initialize(moment)

    def _stages(self, parts: Parts, drop_path_rate: float) -> list[nn.Module]:
        """Build the stages up to the deepest tap; the final conv is a stage of its own."""
        depth = sum(len(rows) for rows in self.layout.stages)
        rates = iter(drop_path_rates(drop_path_rate, depth))
        stages: list[nn.Module] = [
            nn.Sequential(*(self.block(row, parts, next(rates)) for row in rows))
            for rows in self.layout.stages[: self.taps[-1] + 1]
        ]
        if self.out_indices[-1] == FINAL_LEVEL:
            before, final = self.level_channels[-2:]
            head = ConvNormAct(before, final, parts.norm_layer, parts.act_layer)
            stages.append(nn.Sequential(head))
        return stages

    def modules_up_to(self, level: int) -> list[nn.Module]:
        """The stem and the stages up to the end of a level; at level 0 the stem alone."""
        stages = [*self.blocks][: self.level_taps[level] + 1] if level else []
        return [self.conv_stem, self.bn1, self.act1, *stages]

    def truncate_after(self, level: int) -> None:
        """Drop the stages behind a level."""
        self.blocks = Stages(*[*self.blocks][: self.level_taps[level] + 1])
        self.blocks.training = self.training

    def trunk(
        self, x: torch.Tensor, taps: list[int], depth: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the stem and the first ``depth`` stages.

        Args: As :meth:`ghost_plugin.backbones.common.Stages.run`.
        """
        x = self.act1(self.bn1(self.conv_stem(x)))
        return self.blocks.run(x, taps, depth, 0 if self.grad_checkpointing else depth)

    def forward(self, x: torch.Tensor):  # type: ignore[no-untyped-def]
        _, features = self.trunk(x, self.taps, self.taps[-1] + 1)
        if torch.jit.is_scripting():  # TorchScript has no type for tuples of any length
            return features
        return tuple(features)


class GhostNetV2(GhostNet):
    """GhostNet with decoupled fully connected attention on all expansions but the first two.

    Source: Tang et al., GhostNetV2, NeurIPS 2022 (arXiv 2211.12905). Published widths are 1.0, 1.3
    and 1.6. Arguments, shapes and errors as :class:`GhostNet`.
    """

    spec = GHOSTNET_V2


class GhostNetV3(GhostNet):
    """GhostNetV2 with parallel branches while it trains.

    ``switch_to_deploy()`` merges the branches and folds every norm, in place.

    Source: Liu et al., GhostNetV3 (arXiv 2404.11202).

    Args:
        args, kwargs: As :class:`GhostNet`; ``cheap`` must be ``'depthwise'``, ``group_size`` 1.
        deploy: Build the published form for inference: one conv instead of each group of branches;
            the norms of attention and shortcuts stay.

    Shape:
        As :class:`GhostNet`.

    Raises:
        ValueError, TypeError: As :class:`GhostNet`.
    """

    spec = GHOSTNET_V2
    block = GhostBottleneckV3

    def __init__(self, *args: Any, deploy: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if deploy:
            merge_branches(self, compare=False)


class RepGhostNet(GhostNet):
    """GhostNet whose modules add features instead of concatenating them.

    ``switch_to_deploy()`` merges the branches of each module and folds every norm, in place.

    Source: Chen et al., RepGhost (arXiv 2211.06088), table 1. Published widths are 0.5, 0.58, 0.8,
    1.0, 1.11, 1.3, 1.5 and 2.0.

    Args:
        width, in_channels, out_indices, output_stride: As :class:`GhostNet`.
        drop_path_rate, norm_layer, act_layer, dw_size: The same.
        se, stem_stride, grad_checkpointing, zero_init_residual: The same.
        deploy: Build the published form for inference: one depthwise conv instead of the branches
            of each module; other norms stay.

    Shape:
        As :class:`GhostNet`.

    Raises:
        ValueError, TypeError: As :class:`GhostNet`.
    """

    spec = REPGHOSTNET
    block = RepGhostBottleneck

    def __init__(
        self,
        width: float = 1.0,
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: int = 32,
        drop_path_rate: float = 0.0,
        norm_layer: Norm = nn.BatchNorm2d,
        act_layer: Act = nn.ReLU,
        dw_size: int = 3,
        se: bool = True,
        stem_stride: int = 2,
        grad_checkpointing: bool = False,
        zero_init_residual: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__(
            width,
            in_channels,
            out_indices,
            output_stride,
            drop_path_rate,
            norm_layer,
            act_layer,
            dw_size=dw_size,
            se=se,
            stem_stride=stem_stride,
            grad_checkpointing=grad_checkpointing,
            zero_init_residual=zero_init_residual,
        )
        if deploy:
            merge_branches(self, compare=False)
