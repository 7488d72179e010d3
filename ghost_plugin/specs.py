"""Every family as a table: the rows build the network and publish its channels and strides.

Source: Han et al., GhostNet, CVPR 2020 (arXiv 1911.11907), table 1; rounding of widths as in
https://github.com/huawei-noah/Efficient-AI-Backbones (Apache-2.0) and timm, so that published
weights fit.

Levels, the meaning of ``out_indices`` everywhere in this package:

| index | 0 | 1 | 2 | 3  | 4  | 5                                       |
| ----- | - | - | - | -- | -- | --------------------------------------- |
| stride| 2 | 4 | 8 | 16 | 32 | 32, the final 1x1 conv before the head  |

Each of 0..4 is the *last* block of its stride, so no block of the trunk is lost.
"""

import difflib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

FINAL_LEVEL = 5
OUTPUT_STRIDES = (8, 16, 32)


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
    """One family."""

    stem: int  # channels of the stride-2 stem, before the width multiplier
    stages: tuple[tuple[Row, ...], ...]
    hidden: int = 1280  # channels of the layer before the classifier, at every width
    divisor: int = 4  # widths round to multiples of this


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

SPECS = {'GhostNet': GHOSTNET}


@dataclass(frozen=True)
class Block:
    """One bottleneck with every number final: what a backbone builds."""

    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int
    se: float
    downsample: bool  # has the depthwise conv and the projected shortcut of a stride-2 row
    stride: int  # 1 instead of 2 once ``output_stride`` is reached
    dilations: tuple[int, int]  # of the depthwise convs up to and after the strided one


@dataclass(frozen=True)
class Layout:
    """A family at one width and output stride."""

    stem: int
    stages: tuple[tuple[Block, ...], ...]
    levels: tuple[int, ...]  # stride index 0..4 of each stage
    final: int  # channels of the final 1x1 conv

    def tap(self, level: int) -> int:
        """Index of the last stage of a level; the final conv stands behind the last stage."""
        if level == FINAL_LEVEL:
            return len(self.stages)
        return max(index for index, other in enumerate(self.levels) if other == level)

    def channels(self, level: int) -> int:
        """Output channels of a level."""
        return self.final if level == FINAL_LEVEL else self.stages[self.tap(level)][-1].out_channels


def make_divisible(value: float, divisor: int = 4) -> int:
    """Nearest multiple of ``divisor`` that is not more than a tenth below ``value``."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def layout(spec: Spec, width: float = 1.0, output_stride: int = 32) -> Layout:
    """Turn the rows of a family into final numbers.

    Args:
        spec: The family.
        width: Multiplier of all channels, above 0.
        output_stride: 8, 16 or 32; deeper strides become dilations of the depthwise convs. The
            conv whose stride is taken away keeps the dilation before it, all later ones get
            the wider one, so that every second output pixel is what the strided net gives.
    """
    check_width(width)
    check_output_stride(output_stride)

    def scale(channels: int) -> int:
        return make_divisible(channels * width, spec.divisor)

    channels, reached, dilation, level = scale(spec.stem), 2, 1, 0
    stages, levels = [], []
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
                    downsample=row.stride > 1,
                    stride=stride,
                    dilations=(before, dilation),
                )
            )
            channels = blocks[-1].out_channels
        stages.append(tuple(blocks))
        levels.append(level)
    return Layout(scale(spec.stem), tuple(stages), tuple(levels), blocks[-1].mid_channels)


def out_channels(
    name: str, out_indices: Sequence[int] = (1, 2, 3, 4), width: float = 1.0
) -> list[int]:
    """Channels of the features that a backbone returns, for necks and heads.

    >>> out_channels('GhostNet', (0, 1, 2, 3, 4))
    [16, 24, 40, 112, 160]
    """
    plan = layout(find(name), width)
    return [plan.channels(level) for level in check_out_indices(out_indices)]


def out_strides(
    name: str, out_indices: Sequence[int] = (1, 2, 3, 4), output_stride: int = 32
) -> list[int]:
    """Strides in pixels of the features that a backbone returns.

    >>> out_strides('GhostNet', (2, 3, 4), output_stride=16)
    [8, 16, 16]
    """
    find(name)
    check_output_stride(output_stride)
    deepest = FINAL_LEVEL - 1
    return [
        min(2 ** (1 + min(level, deepest)), output_stride)
        for level in check_out_indices(out_indices)
    ]


def find(name: str) -> Spec:
    """The family behind a public name; a ``ghost_plugin.`` scope in front is allowed."""
    key = str(name).removeprefix('ghost_plugin.')
    if key not in SPECS:
        near = difflib.get_close_matches(key, SPECS, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'unknown backbone {name!r}, known are {sorted(SPECS)}{hint}')
    return SPECS[key]


def check_width(width: float) -> None:
    """Raise unless ``width`` is a finite number above 0."""
    if not isinstance(width, Real) or isinstance(width, bool):
        raise TypeError(f'width must be a number such as 0.5, 1.0 or 1.3, got {width!r}')
    if not 0 < width < math.inf:
        raise ValueError(
            f'width must be above 0 and finite, such as 0.5, 1.0 or 1.3, got {width!r}'
        )


def check_output_stride(output_stride: int) -> None:
    """Raise unless ``output_stride`` is 8, 16 or 32."""
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride!r}')


def check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Levels as a tuple; raise unless they are distinct, rising and within 0..5."""
    if isinstance(out_indices, int):
        out_indices = (out_indices,)
    if not isinstance(out_indices, Sequence) or not all(type(i) is int for i in out_indices):
        raise TypeError(
            f'out_indices must be integers within 0..{FINAL_LEVEL}, got {out_indices!r}'
        )
    levels = tuple(out_indices)
    if not levels or any(not 0 <= level <= FINAL_LEVEL for level in levels):
        raise ValueError(
            f'out_indices must lie within 0..{FINAL_LEVEL} (0..4 are strides 2..32, '
            f'{FINAL_LEVEL} is the final 1x1 conv), got {out_indices!r}'
        )
    if any(a >= b for a, b in itertools.pairwise(levels)):
        raise ValueError(f'out_indices must rise without repeats, got {out_indices!r}')
    return levels
