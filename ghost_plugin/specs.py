"""Every architecture as a table, from which networks are built and channels and strides computed.

Sources: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), table 1; Tang et al., GhostNetV2,
NeurIPS 2022 (arXiv 2211.12905); Liu et al., GhostNetV3 (arXiv 2404.11202); Han et al., GhostNets on
heterogeneous devices via cheap operations, IJCV 2022 (arXiv 2201.03297); Chen et al., RepGhost
(arXiv 2211.06088), table 1. Rounding of widths as in
https://github.com/huawei-noah/Efficient-AI-Backbones (Apache-2.0) and timm, so that published
weights fit.

Levels, the meaning of ``out_indices`` everywhere in this package:

| index | 0 | 1 | 2 | 3  | 4  | 5                                       |
| ----- | - | - | - | -- | -- | --------------------------------------- |
| stride| 2 | 4 | 8 | 16 | 32 | 32, the final 1x1 conv before the head  |

Each of 0..4 is the *last* block of its stride, so every block of the trunk is used. G-Ghost RegNet
has no final conv and ends at 4.
"""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

FINAL_LEVEL = 5
OUTPUT_STRIDES = (8, 16, 32)
STEM_STRIDES = (1, 2)


@dataclass(frozen=True)
class Row:
    """One bottleneck of a published table, channels before the width multiplier."""

    kernel: int  # depthwise kernel between the two Ghost modules, pixels
    expand: int  # inner channels
    out: int  # output channels
    se: float = 0.0  # squeeze ratio of squeeze-excite, 0 = none
    stride: int = 1


@dataclass(frozen=True)
class Spec:
    """One architecture made of Ghost bottlenecks."""

    stem: int  # channels of the stride-2 stem, before the width multiplier
    stages: tuple[tuple[Row, ...], ...]
    hidden: int = 1280  # channels of the layer before the classifier, at every width
    divisor: int = 4  # widths round to multiples of this
    attention: int | None = None  # first block whose expansion has the attention of V2
    final_expand: int = 1  # channels of the final conv, as a multiple of the last row's inner ones
    deepest: int = FINAL_LEVEL  # last level

    def channels(self, width: float = 1.0) -> tuple[int, ...]:
        """Channels of the levels 0..5."""
        return layout(self, width).channels


GHOSTNET = Spec(
    stem=16,
    stages=(
        (Row(3, 16, 16),),
        (Row(3, 48, 24, stride=2),),
        (Row(3, 72, 24),),
        (Row(5, 72, 40, 0.25, 2),),
        (Row(5, 120, 40, 0.25),),
        (Row(3, 240, 80, stride=2),),
        (
            Row(3, 200, 80),
            Row(3, 184, 80),
            Row(3, 184, 80),
            Row(3, 480, 112, 0.25),
            Row(3, 672, 112, 0.25),
        ),
        (Row(5, 672, 160, 0.25, 2),),
        (
            Row(5, 960, 160),
            Row(5, 960, 160, 0.25),
            Row(5, 960, 160),
            Row(5, 960, 160, 0.25),
        ),
    ),
)

GHOSTNET_V2 = replace(GHOSTNET, attention=2)

# Half of GhostNet's inner channels, as a RepGhost module computes all its channels by convs.
REPGHOSTNET = Spec(
    stem=16,
    stages=(
        (Row(3, 8, 16),),
        (Row(3, 24, 24, stride=2),),
        (Row(3, 36, 24),),
        (Row(5, 36, 40, 0.25, 2),),
        (Row(5, 60, 40, 0.25),),
        (Row(3, 120, 80, stride=2),),
        (
            Row(3, 100, 80),
            Row(3, 120, 80),
            Row(3, 120, 80),
            Row(3, 240, 112, 0.25),
            Row(3, 336, 112, 0.25),
        ),
        (Row(5, 336, 160, 0.25, 2),),
        (
            Row(5, 480, 160),
            Row(5, 480, 160, 0.25),
            Row(5, 480, 160),
            Row(5, 480, 160, 0.25),
        ),
    ),
    final_expand=2,
)


@dataclass(frozen=True)
class GGhostSpec:
    """One size of G-Ghost RegNet."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int  # channels per group of the 3x3 convs
    stem: int = 32
    deepest: int = FINAL_LEVEL - 1

    def channels(self, width: float = 1.0) -> tuple[int, ...]:
        """Channels of the levels 0..4; there is one width of each size."""
        if width != 1.0:
            raise ValueError(f'G-Ghost takes its size from arch, width must be 1.0, got {width!r}')
        return (self.stem, *self.widths)


# Keys are those of the RegNetX with the same shape: 100 M multiply-adds.
G_GHOST = {
    '002': GGhostSpec((1, 1, 4, 7), (24, 56, 152, 368), 8),
    '004': GGhostSpec((1, 2, 7, 12), (32, 64, 160, 384), 16),
    '006': GGhostSpec((1, 3, 5, 7), (48, 96, 240, 528), 24),
    '008': GGhostSpec((1, 3, 7, 5), (64, 128, 288, 672), 16),
    '016': GGhostSpec((2, 4, 10, 2), (72, 168, 408, 912), 24),
    '032': GGhostSpec((2, 6, 15, 2), (96, 192, 432, 1008), 48),
    '040': GGhostSpec((2, 5, 14, 2), (80, 240, 560, 1360), 40),
    '064': GGhostSpec((2, 4, 10, 1), (168, 392, 784, 1624), 56),
    '080': GGhostSpec((2, 5, 15, 1), (80, 240, 720, 1920), 120),
    '120': GGhostSpec((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    '160': GGhostSpec((2, 6, 13, 1), (256, 512, 896, 2048), 128),
    '320': GGhostSpec((2, 7, 13, 1), (336, 672, 1344, 2520), 168),
}

# Public name: table; G-Ghost takes its size from ``arch``.
SPECS = {
    'GhostNet': GHOSTNET,
    'GhostNetV2': GHOSTNET_V2,
    'GhostNetV3': GHOSTNET_V2,
    'GGhostRegNet': G_GHOST,
    'RepGhostNet': REPGHOSTNET,
}


@dataclass(frozen=True)
class Block:
    """One bottleneck as a backbone builds it, with the width multiplier applied."""

    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int
    se: float
    attention: bool  # the expansion has the attention of V2
    downsample: bool  # has the depthwise conv and the projected shortcut of a stride-2 row
    stride: int  # 1 instead of 2 once ``output_stride`` is reached
    dilations: tuple[int, int]  # of the depthwise convs up to and after the strided one


@dataclass(frozen=True)
class Layout:
    """An architecture at one width and output stride."""

    stem: int
    stages: tuple[tuple[Block, ...], ...]
    levels: tuple[int, ...]  # stride index 0..4 of each stage
    final: int  # channels of the final 1x1 conv

    def tap(self, level: int) -> int:
        """Index of the last stage of a level; the final conv comes after the last stage."""
        if level == FINAL_LEVEL:
            return len(self.stages)
        return max(index for index, other in enumerate(self.levels) if other == level)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of the levels 0..5."""
        ends = (self.stages[self.tap(level)][-1] for level in range(FINAL_LEVEL))
        return (*(block.out_channels for block in ends), self.final)


def make_divisible(value: float, divisor: int = 4) -> int:
    """Nearest multiple of ``divisor`` that is not more than a tenth below ``value``.

    Args:
        value: A number of channels.
        divisor: The result is a multiple of it, at least ``divisor`` itself.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def layout(spec: Spec, width: float = 1.0, output_stride: int = 32, stem_stride: int = 2) -> Layout:
    """Apply width and strides to the rows of an architecture.

    Args:
        spec: The architecture.
        width: Multiplier of all channels, above 0.
        output_stride: 8, 16 or 32; deeper strides become dilations of the depthwise convs. The
            conv whose stride is taken away keeps the dilation before it, all later ones get
            the wider one, so that every second output pixel is what the strided net gives.
        stem_stride: 2, or 1 for small images, which makes all strides half as large.
    """
    check_width(width)
    check_strides(output_stride, stem_stride)

    def scale(channels: int) -> int:
        return make_divisible(channels * width, spec.divisor)

    channels, reached, dilation, level = scale(spec.stem), stem_stride, 1, 0
    index, stages, levels = itertools.count(), [], []
    for rows in spec.stages:
        blocks = []
        for row in rows:
            before, stride = dilation, row.stride
            level += row.stride > 1
            if reached * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reached *= stride
            blocks.append(
                Block(
                    in_channels=channels,
                    mid_channels=scale(row.expand),
                    out_channels=scale(row.out),
                    kernel=row.kernel,
                    se=row.se,
                    attention=spec.attention is not None and next(index) >= spec.attention,
                    downsample=row.stride > 1,
                    stride=stride,
                    dilations=(before, dilation),
                )
            )
            channels = blocks[-1].out_channels
        stages.append(tuple(blocks))
        levels.append(level)
    final = scale(spec.stages[-1][-1].expand * spec.final_expand)
    return Layout(scale(spec.stem), tuple(stages), tuple(levels), final)


def out_channels(
    name: str,
    out_indices: Sequence[int] = (1, 2, 3, 4),
    width: float = 1.0,
    arch: str = '032',
) -> list[int]:
    """Channels of the features that a backbone returns, for necks and heads.

    Args:
        name: Public name of the backbone.
        out_indices: Levels, see the module's table.
        width: Multiplier of all channels.
        arch: Size of a G-Ghost RegNet.

    Raises:
        ValueError: An unknown name or size, or a level that does not exist.

    >>> out_channels('GhostNet', (0, 1, 2, 3, 4))
    [16, 24, 40, 112, 160]
    >>> out_channels('GGhostRegNet', arch='040')
    [80, 240, 560, 1360]
    """
    spec = find(name, arch)
    channels = spec.channels(width)
    return [channels[level] for level in check_out_indices(out_indices, spec.deepest)]


def out_strides(
    name: str,
    out_indices: Sequence[int] = (1, 2, 3, 4),
    output_stride: int = 32,
    stem_stride: int = 2,
) -> list[int]:
    """Strides in pixels of the features that a backbone returns.

    Args:
        name: Public name of the backbone.
        out_indices: Levels, see the module's table.
        output_stride, stem_stride: As for the backbone.

    Raises:
        ValueError: An unknown name, or a level or stride that does not exist.

    >>> out_strides('GhostNet', (2, 3, 4), output_stride=16)
    [8, 16, 16]
    """
    levels = check_out_indices(out_indices, find(name).deepest)
    check_strides(output_stride, stem_stride)
    deepest = FINAL_LEVEL - 1
    return [min(stem_stride * 2 ** min(level, deepest), output_stride) for level in levels]


def find(name: str, arch: str = '032') -> Spec | GGhostSpec:
    """The table of a public name.

    Args:
        name: With or without a ``ghost_plugin.`` scope.
        arch: Size of a G-Ghost RegNet.

    Raises:
        ValueError: An unknown name or size.
    """
    spec = _choose('backbone', str(name).removeprefix('ghost_plugin.'), SPECS)
    return _choose('arch', arch, spec) if isinstance(spec, dict) else spec


def _choose(kind: str, key: str, table: Mapping[str, Any]) -> Any:
    if key in table:
        return table[key]
    near = difflib.get_close_matches(str(key), table, n=2)
    hint = f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
    raise ValueError(f'unknown {kind} {key!r}, known are {sorted(table)}{hint}')


def check_width(width: float) -> None:
    """Raise unless ``width`` is a finite number above 0."""
    if not isinstance(width, Real) or isinstance(width, bool):
        raise TypeError(f'width must be a number such as 0.5, 1.0 or 1.3, got {width!r}')
    if not 0 < width < math.inf:
        raise ValueError(
            f'width must be above 0 and finite, such as 0.5, 1.0 or 1.3, got {width!r}'
        )


def check_strides(output_stride: int, stem_stride: int = 2) -> None:
    """Raise ValueError for strides that do not exist.

    Args:
        output_stride: 8, 16 or 32.
        stem_stride: 1 or 2.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride!r}')
    if stem_stride not in STEM_STRIDES:
        raise ValueError(f'stem_stride must be 1 or 2, got {stem_stride!r}')


def check_rate(name: str, rate: float) -> None:
    """Raise ValueError for a rate out of its range.

    Args:
        name: Name of the argument, for the message.
        rate: From 0 to 1, 1 excluded.
    """
    if not isinstance(rate, Real) or not 0 <= rate < 1:
        raise ValueError(f'{name} must be within 0..1, 1 excluded, got {rate!r}')


def check_out_indices(out_indices: Sequence[int], deepest: int = FINAL_LEVEL) -> tuple[int, ...]:
    """Check levels.

    Args:
        out_indices: Levels, or a single one.
        deepest: The last level.

    Returns:
        The levels as a tuple.

    Raises:
        TypeError: They are not integers.
        ValueError: They are not distinct, rising and within 0..deepest.
    """
    if isinstance(out_indices, int):
        out_indices = (out_indices,)
    if not isinstance(out_indices, Sequence) or not all(type(i) is int for i in out_indices):
        raise TypeError(f'out_indices must be integers within 0..{deepest}, got {out_indices!r}')
    levels = tuple(out_indices)
    if not levels or any(not 0 <= level <= deepest for level in levels):
        final = f', {FINAL_LEVEL} is the final 1x1 conv' if deepest == FINAL_LEVEL else ''
        raise ValueError(
            f'out_indices must lie within 0..{deepest} (0..4 are strides 2..32{final}), '
            f'got {out_indices!r}'
        )
    if any(a >= b for a, b in itertools.pairwise(levels)):
        raise ValueError(f'out_indices must rise without repeats, got {out_indices!r}')
    return levels
