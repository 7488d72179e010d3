"""G-Ghost RegNet: a stage computes some channels by blocks, the others from its first block.

Source: Han et al., GhostNets on heterogeneous devices via cheap operations, IJCV 2022
(arXiv 2201.03297), section 4; shapes and parameter names of the authors' code
(https://github.com/huawei-noah/Efficient-AI-Backbones, Apache-2.0). Changed against it: trains
with one image per device, pickles, scripts, features at every level, dilation.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from ..layers.bn_folding import Foldable
from ..layers.common import DropPath, activation, check_positive, draw_weights, second_moment
from ..layers.norm import pooled_norm
from ..specs import GGhostSpec, check_out_indices, check_rate, check_strides, find
from .common import BRANCH_VARIANCE, Act, Norm, Parts, Stages, drop_path_rates

CHEAP_WIDTH = 0.75  # group width inside a ghost stage, as a share of that outside


class RegNetBottleneck(Foldable):
    """1x1, grouped 3x3 and 1x1 conv, all of the same width, around a shortcut.

    Source: Radosavovic et al., Designing Network Design Spaces, CVPR 2020 (arXiv 2003.13678).

    Args:
        in_channels, out_channels: Input and output channels.
        group_width: Channels per group of the 3x3 conv.
        parts: Norm and activation.
        stride, dilation: Stride and dilation of the 3x3 conv.
        drop_path: Share of samples whose branch is dropped in training.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    folds = (('conv1', 'bn1'), ('conv2', 'bn2'), ('conv3', 'bn3'))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group_width: int,
        parts: Parts,
        stride: int = 1,
        dilation: int = 1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        width, norm_layer = out_channels, parts.norm_layer
        groups = width // min(width, group_width)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, groups, bias=False)
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, width, 1, bias=False)
        self.bn3 = norm_layer(width)
        self.relu = activation(parts.act_layer)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            shortcut = nn.Conv2d(in_channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, norm_layer(width))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def initialize(self, moment: float) -> float:
        """Draw initial weights; the branch adds a variance of one half to that of the shortcut.

        Args:
            moment: Mean square of the inputs.

        Returns:
            Mean square of the outputs.
        """
        inner = second_moment(self.relu, 1.0)
        draw_weights(self.conv1, moment)
        draw_weights(self.conv2, inner)
        draw_weights(self.conv3, inner, BRANCH_VARIANCE)
        if isinstance(self.downsample, nn.Sequential):
            draw_weights(self.downsample[0], moment, 1.0 - BRANCH_VARIANCE)
            return inner
        return second_moment(self.relu, BRANCH_VARIANCE, moment)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.drop_path(self.bn3(self.conv3(branch)))
        return self.relu(branch + self.downsample(x))


class GhostStage(Foldable):
    """First block, blocks on some of its channels, a cheap conv on the others, last block on all.

    One value per cheap channel, computed from the channel means of all blocks, is added to it.

    Source: Han et al., IJCV 2022 (arXiv 2201.03297), section 4, with the mix of the authors' code.

    Args:
        in_channels, out_channels: Input and output channels.
        depth: Blocks, three or more.
        group_width: Channels per group of the 3x3 convs outside.
        cheap_ratio: Approximate share of the channels that the cheap conv computes.
        parts: Norm and activation.
        stride: Stride of the first block.
        dilations: Dilation of the first block, and of all others.
        drop_paths: One rate per block.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        group_width: int,
        cheap_ratio: float,
        parts: Parts,
        stride: int,
        dilations: tuple[int, int],
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        before, after = dilations
        inner = int(group_width * CHEAP_WIDTH)
        raw = int(out_channels * (1 - cheap_ratio) / inner) * inner
        if not 0 < raw < out_channels:
            raise ValueError(
                f'cheap_ratio {cheap_ratio!r} leaves {raw} of {out_channels} channels to the '
                f'blocks, whose groups have {inner}; use a value nearer to 0.5'
            )
        cheap = out_channels - raw
        self.base = RegNetBottleneck(
            in_channels, out_channels, group_width, parts, stride, before, drop_paths[0]
        )
        self.end = RegNetBottleneck(
            out_channels, out_channels, group_width, parts, 1, after, drop_paths[-1]
        )
        self.merge = nn.Sequential(
            nn.Identity(),  # the authors pool here, behind the concatenation
            nn.Conv2d(out_channels + raw * (depth - 2), cheap, 1, bias=False),
            pooled_norm(parts.norm_layer, cheap),
            activation(parts.act_layer),
            nn.Conv2d(cheap, cheap, 1, bias=False),
            pooled_norm(parts.norm_layer, cheap),
        )
        self.cheap: Any = nn.Sequential(
            nn.Conv2d(cheap, cheap, 1, bias=False), parts.norm_layer(cheap)
        )
        self.cheap_relu = activation(parts.act_layer)
        self.layers: Any = nn.Sequential(
            *(RegNetBottleneck(raw, raw, inner, parts, 1, after, rate) for rate in drop_paths[1:-1])
        )

    def initialize(self, moment: float) -> float:
        """Draw initial weights for inputs of a mean square; returns that of the outputs."""
        blocks: list[Any] = [self.base, *self.layers]
        moments = []
        for block in blocks:
            moment = block.initialize(moment)
            moments.append(moment)
        draw_weights(self.merge[1], sum(moments) / len(moments))
        draw_weights(self.merge[4], second_moment(self.merge[3], 1.0), 0.5)
        draw_weights(self.cheap[0], moments[0], 0.5)
        cheap = second_moment(self.cheap_relu, 1.0)
        raw, rest = self.layers[0].conv1.in_channels, self.cheap[0].in_channels
        return self.end.initialize((raw * moments[-1] + rest * cheap) / (raw + rest))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.base(x)
        means = [first.mean((2, 3), keepdim=True)]
        # Sizes of the layers, which may have lost channels to pruning.
        sizes = [self.layers[0].conv1.in_channels, self.cheap[0].in_channels]
        maps, rest = torch.split(first, sizes, 1)
        for block in self.layers:
            maps = block(maps)
            means.append(maps.mean((2, 3), keepdim=True))
        cheap = self.cheap(rest) + self.merge(torch.cat(means, 1))
        return self.end(torch.cat((maps, self.cheap_relu(cheap)), 1))


class GGhostRegNet(Foldable, Stages):
    """G-Ghost RegNet that returns features at the levels asked for; its children are its stages.

    Source: Han et al., GhostNets on heterogeneous devices, IJCV 2022 (arXiv 2201.03297).

    Args:
        arch: ``'002'`` to ``'320'``, see :data:`ghost_plugin.specs.G_GHOST`; weights are
            published for 032, 040, 080 and 160.
        in_channels: Channels of the image.
        out_indices: Levels to return: 0 is the stem, 1..4 are the stages at strides 4 to 32.
            Stages behind the deepest level are not built.
        output_stride: 8, 16 or 32; deeper strides become dilations of the 3x3 convs.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        norm_layer: Called with the number of channels.
        act_layer: Called without arguments, or with ``inplace=True`` where it takes that.
        cheap_ratio: Approximate share of the channels of a stage that the cheap conv computes.
        stem_stride: 2, or 1 for small images, which makes all strides half as large.
        grad_checkpointing: Compute activations again in backward instead of keeping them.

    Shape:
        (N, in_channels, H, W) -> tuple of (N, out_channels[i], ceil(H / out_strides[i]),
        ceil(W / out_strides[i])); any H and W of 1 or more.

    Raises:
        ValueError: A value out of its range.
        TypeError: A value of a wrong kind.
    """

    folds = (('conv1', 'bn1'),)

    def __init__(
        self,
        arch: str = '032',
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: int = 32,
        drop_path_rate: float = 0.0,
        norm_layer: Norm = nn.BatchNorm2d,
        act_layer: Act = nn.ReLU,
        cheap_ratio: float = 0.5,
        stem_stride: int = 2,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels)
        check_rate('drop_path_rate', drop_path_rate)
        check_rate('cheap_ratio', cheap_ratio)
        check_strides(output_stride, stem_stride)
        self.arch_spec = cast(GGhostSpec, find('GGhostRegNet', arch))
        self.out_indices = check_out_indices(out_indices, self.arch_spec.deepest)
        self.grad_checkpointing = grad_checkpointing
        self.level_channels = self.arch_spec.channels()
        self.first_stage = 3  # after conv, norm and activation of the stem
        self.level_taps = [
            self.first_stage - 1 + level for level in range(len(self.level_channels))
        ]
        self.taps = [self.level_taps[level] for level in self.out_indices]
        self.out_channels = [self.level_channels[level] for level in self.out_indices]
        parts = Parts(norm_layer, act_layer)
        stem = self.arch_spec.stem
        self.conv1 = nn.Conv2d(in_channels, stem, 3, stem_stride, 1, bias=False)
        self.bn1 = norm_layer(stem)
        self.relu = activation(act_layer)
        rates = iter(drop_path_rates(drop_path_rate, sum(self.arch_spec.depths)))
        reached, dilation = stem_stride, 1
        for level in range(1, self.out_indices[-1] + 1):
            before, stride = dilation, 2
            if reached * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            stage = self._stage(level, cheap_ratio, parts, stride, (before, dilation), rates)
            self.add_module(f'layer{level}', stage)
        self.initialize()

    def initialize(self) -> None:
        """Draw initial weights that give all blocks outputs with a variance of order one."""
        draw_weights(self.conv1)
        moment = second_moment(self.relu, 1.0)
        for stage in list(self)[self.first_stage :]:
            blocks: list[Any] = [stage] if isinstance(stage, GhostStage) else [*stage.children()]
            for block in blocks:
                moment = block.initialize(moment)

    def _stage(
        self,
        level: int,
        cheap_ratio: float,
        parts: Parts,
        stride: int,
        dilations: tuple[int, int],
        rates: Iterator[float],
    ) -> nn.Module:
        """A ghost stage if there are three blocks or more, else plain blocks."""
        spec = self.arch_spec
        depth, group_width = spec.depths[level - 1], spec.group_width
        channels, out_channels = self.level_channels[level - 1 : level + 1]
        drop_paths = [next(rates) for _ in range(depth)]
        if depth > 2:
            return GhostStage(
                channels, out_channels, depth, group_width, cheap_ratio, parts, stride, dilations,
                drop_paths,
            )  # fmt: skip
        before, after = dilations
        blocks = [
            RegNetBottleneck(
                channels, out_channels, group_width, parts, stride, before, drop_paths[0]
            )
        ]
        blocks += [
            RegNetBottleneck(out_channels, out_channels, group_width, parts, 1, after, rate)
            for rate in drop_paths[1:]
        ]
        return nn.Sequential(*blocks)

    def modules_up_to(self, level: int) -> list[nn.Module]:
        """The stem and the stages up to a level."""
        return list(self.children())[: self.level_taps[level] + 1]

    def truncate_after(self, level: int) -> None:
        """Drop the stages behind a level."""
        for deeper in range(level + 1, self.out_indices[-1] + 1):
            delattr(self, f'layer{deeper}')

    def trunk(
        self, x: torch.Tensor, taps: list[int], depth: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the first ``depth`` children.

        Args: As :meth:`ghost_plugin.backbones.common.Stages.run`.
        """
        return self.run(x, taps, depth, self.first_stage if self.grad_checkpointing else depth)

    def forward(self, x: torch.Tensor):  # type: ignore[no-untyped-def]
        _, features = self.trunk(x, self.taps, self.taps[-1] + 1)
        if torch.jit.is_scripting():  # TorchScript has no type for tuples of any length
            return features
        return tuple(features)
