"""Triton kernels for Ghost layers on GPUs, which write all channels without a concatenation.

All tensors are channels-last, (N, C, H, W) with the strides of (N, H, W, C). With
``TRITON_INTERPRET=1`` in the environment the kernels take tensors on the CPU, slowly, for tests.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

TILE = 16  # height and width of a tile, pixels
ALIGNED = 8  # channels: libraries have fast kernels for multiples of it
_MAX_ELEMENTS = 2**31 - 1  # offsets have 32 bits
# All sizes share one compiled kernel; otherwise each layer of a network would compile its own.
_SIZES = ('height', 'width', 'tiles_across', 'tiles', 'step', 'halo', 'tile_height', 'tile_width',
          'out_height', 'out_width', 'pixels', 'row_units', 'in_units', 'primary_units',
          'out_units')  # fmt: skip


@triton.jit(do_not_specialize=_SIZES[:8] + _SIZES[-3:])
def _ghost_kernel(
    x, weight, bias, cheap, cheap_bias, shift, out,
    height, width, tiles_across, tiles, step, halo, tile_height, tile_width,
    in_units, primary_units, out_units,
    IN_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, COPIES: tl.constexpr, SIZE: tl.constexpr,
    DILATION: tl.constexpr, RELU: tl.constexpr, SHIFT: tl.constexpr, PRECISION: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """1x1 conv, activation, depthwise conv, activation, for a tile and a block of channels."""
    channels, primary, outputs = in_units * IN_UNIT, primary_units * OUT_UNIT, out_units * OUT_UNIT
    blocks = (primary + BLOCK - 1) // BLOCK
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    image, tile = tile // tiles, tile % tiles
    place = tl.arange(0, PIXELS)
    down, right = place // tile_width, place % tile_width
    y = (tile // tiles_across) * step - halo + down
    z = (tile % tiles_across) * step - halo + right
    inside = (down < tile_height) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
    pixel = (image * height + y) * width + z
    channel = block * BLOCK + tl.arange(0, BLOCK)
    some = (channel < primary)[None, :]
    maps = tl.full((PIXELS, BLOCK), 0.0, tl.float32)
    for start in range(0, channels, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        rows = inside[:, None] & (inner < channels)[None, :]
        a = tl.load(x + pixel[:, None] * channels + inner[None, :], mask=rows, other=0.0)
        columns = (inner < channels)[:, None] & some
        b = tl.load(weight + channel[None, :] * channels + inner[:, None], mask=columns, other=0.0)
        maps = tl.dot(a, b, maps, input_precision=PRECISION)
    maps += tl.load(bias + channel, mask=channel < primary, other=0.0)[None, :]
    if RELU:
        maps = tl.maximum(maps, 0.0)
    moved = tl.full((BLOCK,), 0.0, tl.float32)
    if SHIFT:
        moved = tl.load(shift + channel, mask=channel < primary, other=0.0)
    here = out + pixel[:, None] * outputs + channel[None, :]
    # Tiles overlap by a halo, where adjacent tiles write the same values.
    tl.store(here, (maps + moved[None, :]).to(out.dtype.element_ty), mask=inside[:, None] & some)
    tl.debug_barrier()  # the writes of the other threads of this tile are read back
    own = inside & (down >= halo) & (down < tile_height - halo)
    own = own & (right >= halo) & (right < tile_width - halo)
    for copy in tl.static_range(COPIES):
        ghost = channel * COPIES + copy
        wanted = (channel < primary) & (primary + ghost < outputs)
        made = tl.full((PIXELS, BLOCK), 0.0, tl.float32)
        for tap in tl.static_range(SIZE * SIZE):
            dy = (tap // SIZE - SIZE // 2) * DILATION
            dz = (tap % SIZE - SIZE // 2) * DILATION
            seen = own & (y + dy >= 0) & (y + dy < height) & (z + dz >= 0) & (z + dz < width)
            near = tl.load(here + (dy * width + dz) * outputs, mask=seen[:, None] & some, other=0.0)
            near = near.to(tl.float32)
            if SHIFT:
                near = tl.where(seen[:, None], near - moved[None, :], 0.0)
            factor = tl.load(cheap + tap * primary * COPIES + ghost, mask=wanted, other=0.0)
            made += near * factor[None, :]
        made += tl.load(cheap_bias + ghost, mask=wanted, other=0.0)[None, :]
        if RELU:
            made = tl.maximum(made, 0.0)
        there = out + pixel[:, None] * outputs + (primary + ghost)[None, :]
        tl.store(there, made.to(out.dtype.element_ty), mask=own[:, None] & wanted[None, :])


@triton.jit(do_not_specialize=_SIZES[:2] + _SIZES[8:12] + _SIZES[-2:])
def _finish_kernel(
    x, bias, cheap, cheap_bias, shift, out,
    height, width, out_height, out_width, pixels, row_units, primary_units, out_units,
    ROW_UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, COPIES: tl.constexpr, KEEP: tl.constexpr,
    HIGH: tl.constexpr, WIDE: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    RELU: tl.constexpr, SHIFT: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bias, activation, depthwise conv, activation; KEEP writes primary and ghost channels."""
    row, primary, outputs = row_units * ROW_UNIT, primary_units * OUT_UNIT, out_units * OUT_UNIT
    blocks = (primary + BLOCK - 1) // BLOCK
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    z, y = pixel % out_width, (pixel // out_width) % out_height
    image = pixel // (out_width * out_height)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    some = channel < primary
    added = tl.load(bias + channel, mask=some, other=0.0)
    y, z = y * STRIDE, z * STRIDE
    centre = x + ((image * height + y) * width + z)[:, None] * row + channel[None, :]
    offset = 0
    if KEEP:
        offset = primary
        maps = tl.load(centre, mask=inside[:, None] & some[None, :], other=0.0).to(tl.float32)
        maps += added[None, :]
        if RELU:
            maps = tl.maximum(maps, 0.0)
        if SHIFT:
            maps += tl.load(shift + channel, mask=some, other=0.0)[None, :]
        here = out + pixel[:, None] * outputs + channel[None, :]
        tl.store(here, maps.to(out.dtype.element_ty), mask=inside[:, None] & some[None, :])
    for copy in tl.static_range(COPIES):
        ghost = channel * COPIES + copy
        wanted = some & (offset + ghost < outputs)
        made = tl.full((PIXELS, BLOCK), 0.0, tl.float32)
        for tap in tl.static_range(HIGH * WIDE):
            dy = (tap // WIDE - HIGH // 2) * DILATION
            dz = (tap % WIDE - WIDE // 2) * DILATION
            seen = inside & (y + dy >= 0) & (y + dy < height) & (z + dz >= 0) & (z + dz < width)
            mask = seen[:, None] & some[None, :]
            near = tl.load(centre + (dy * width + dz) * row, mask=mask, other=0.0)
            near = near.to(tl.float32)
            if KEEP:
                near += added[None, :]
                if RELU:
                    near = tl.maximum(near, 0.0)
                near = tl.where(seen[:, None], near, 0.0)
            factor = tl.load(cheap + tap * primary * COPIES + ghost, mask=wanted, other=0.0)
            made += near * factor[None, :]
        made += tl.load(cheap_bias + ghost, mask=wanted, other=0.0)[None, :]
        if RELU:
            made = tl.maximum(made, 0.0)
        there = out + pixel[:, None] * outputs + (offset + ghost)[None, :]
        tl.store(there, made.to(out.dtype.element_ty), mask=inside[:, None] & wanted[None, :])


@triton_op('ghost_plugin::ghost', mutates_args={})
def ghost(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    cheap: torch.Tensor,
    cheap_bias: torch.Tensor,
    shift: torch.Tensor | None,
    out_channels: int,
    size: int,
    dilation: int,
    relu: bool,
) -> torch.Tensor:
    """Compute a Ghost layer with a 1x1 primary conv in one kernel.

    Args:
        x: (N, C, H, W), channels-last.
        weight: (primary, C), of x's dtype.
        bias: (primary,), float32.
        cheap: (size * size, primary * copies), float32, the depthwise kernels by tap.
        cheap_bias: (primary * copies,), float32.
        shift: (primary,), float32, added to the primary channels after the cheap kernels have
            read them, or None.
        out_channels: Number of computed channels.
        size: Height and width of the cheap kernels, pixels.
        dilation: Of the cheap kernels, pixels.
        relu: Apply ReLU to primary and ghost channels.

    Returns:
        (N, out_channels, H, W), channels-last, of x's dtype.
    """
    number, channels, height, width = x.shape
    out = _empty_output(x, out_channels, height, width)
    primary, halo, block = len(weight), size // 2 * dilation, _block(len(weight), 16)
    whole = height * width <= TILE * TILE
    tile = (height, width) if whole else (TILE, TILE)
    halo = 0 if whole else halo
    step = TILE - 2 * halo
    across, down = (1, 1) if whole else (-(-width // step), -(-height // step))
    pixels = 64 if height * width <= 64 else TILE * TILE
    in_unit = math.gcd(channels, ALIGNED)
    out_unit = math.gcd(primary, out_channels, ALIGNED)
    _launch(_ghost_kernel)[(number * across * down * -(-primary // block),)](
        x, weight, bias, cheap, cheap_bias, bias if shift is None else shift, out,
        height, width, across, across * down, step, halo, *tile,
        channels // in_unit, primary // out_unit, out_channels // out_unit,
        IN_UNIT=in_unit, OUT_UNIT=out_unit, COPIES=cheap.shape[1] // primary, SIZE=size,
        DILATION=dilation, RELU=relu, SHIFT=shift is not None,
        PRECISION='ieee' if x.dtype == torch.float32 else 'tf32',
        PIXELS=pixels, BLOCK=block, DEPTH=16 if channels <= 16 else 32 if pixels > 64 else 64,
        num_warps=8 if block == 64 else 4,
    )  # fmt: skip
    return out


@triton_op('ghost_plugin::depthwise', mutates_args={})
def depthwise(
    x: torch.Tensor,
    bias: torch.Tensor,
    cheap: torch.Tensor,
    cheap_bias: torch.Tensor,
    shift: torch.Tensor | None,
    out_channels: int,
    size: list[int],
    stride: int,
    dilation: int,
    relu: bool,
    keep: bool,
) -> torch.Tensor:
    """Compute a depthwise conv; with ``keep`` the part of a Ghost layer after its primary conv.

    Args:
        x: (N, C or more, H, W), channels-last; further channels are ignored.
        bias: (C,), float32, added to x with ``keep``; ignored without.
        cheap: (taps, C * copies), float32.
        cheap_bias: (C * copies,), float32.
        shift: (C,), float32, added to the copied channels with ``keep``, or None.
        out_channels: Number of computed channels.
        size: Height and width of the kernel, odd; zero padding keeps the image size.
        stride: Of both axes.
        dilation: Of both axes.
        relu: Apply ReLU after the kernels, and with ``keep`` after the bias.
        keep: The first output channels are x itself.

    Returns:
        (N, out_channels, ceil(H / stride), ceil(W / stride)), channels-last, of x's dtype.
    """
    number, row, height, width = x.shape
    channels, out_size = len(bias), (-(-height // stride), -(-width // stride))
    out = _empty_output(x, out_channels, *out_size)
    block, pixels = _block(channels, 8), number * out_size[0] * out_size[1]
    tile = min(256, 4096 // block)
    row_unit, out_unit = math.gcd(row, ALIGNED), math.gcd(channels, out_channels, ALIGNED)
    _launch(_finish_kernel)[(-(-pixels // tile) * -(-channels // block),)](
        x, bias, cheap, cheap_bias, bias if shift is None else shift, out,
        height, width, *out_size, pixels, row // row_unit, channels // out_unit,
        out_channels // out_unit, ROW_UNIT=row_unit, OUT_UNIT=out_unit,
        COPIES=cheap.shape[1] // channels, KEEP=keep, HIGH=size[0], WIDE=size[1],
        STRIDE=stride, DILATION=dilation, RELU=relu, SHIFT=shift is not None,
        PIXELS=tile, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def _block(channels: int, smallest: int) -> int:
    """Return the largest block of channels that wastes at most a quarter, if there is one."""
    sizes = [size for size in (64, 32, 16, 8) if size >= smallest]
    filled = {
        size: -(-channels // size) * size
        for size in sizes
        if size < 2 * channels or size == smallest
    }
    few = [size for size, whole in filled.items() if 4 * (whole - channels) <= whole]
    return max(few) if few else min(filled, key=filled.__getitem__)


def _empty_output(x: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    """Allocate the output of a kernel."""
    size = (len(x), channels, height, width)
    if max(x.numel(), math.prod(size)) > _MAX_ELEMENTS:
        raise ValueError(
            f'tensors of {_MAX_ELEMENTS + 1} elements or more are not supported by Triton kernels, '
            f'got {tuple(x.shape)}; give a smaller batch'
        )
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _launch(kernel: Any) -> Any:
    """Let torch.compile see a kernel, except in Triton's interpreter."""
    return wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel
