"""Tiles out of a volume and back in, one pass each; the functions of csrc/core/blend.h.

Any strides, offsets in int64. Every voxel has one lane, so that nothing is added twice and no order is open.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _split(index, size1, size2):
    """(i, j, k) of element `index` of a box [., size1, size2]."""
    row = index // size2
    return row // size1, row % size1, index % size2


@triton.jit
def blend_add_kernel(
    volume_ptr,  # float32, at the tile's origin
    tile_ptr,  # float32, float16 or bfloat16
    w0_ptr,
    w1_ptr,
    w2_ptr,
    total,
    size1,
    size2,
    volume_stride0,
    volume_stride1,
    volume_stride2,
    tile_stride0,
    tile_stride1,
    tile_stride2,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i, j, k = _split(index, size1, size2)
    there = index < total
    scale = tl.load(w0_ptr + i, mask=there) * tl.load(w1_ptr + j, mask=there)
    there = there & (scale != 0.0)  # trimmed rows: a NaN there is not ours to spread
    to = volume_ptr + i * volume_stride0 + j * volume_stride1 + k * volume_stride2
    value = tl.load(tile_ptr + i * tile_stride0 + j * tile_stride1 + k * tile_stride2, mask=there).to(tl.float32)
    tl.store(to, tl.load(to, mask=there) + value * (scale * tl.load(w2_ptr + k, mask=there)), mask=there)


@triton.jit
def gather_kernel(
    tile_ptr,  # float32, contiguous
    volume_ptr,  # float32
    total,
    size1,
    size2,
    origin0,
    origin1,
    origin2,
    last0,
    last1,
    last2,
    stride0,
    stride1,
    stride2,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i, j, k = _split(index, size1, size2)
    i = tl.minimum(tl.maximum(origin0 + i, 0), last0)
    j = tl.minimum(tl.maximum(origin1 + j, 0), last1)
    k = tl.minimum(tl.maximum(origin2 + k, 0), last2)
    there = index < total
    tl.store(tile_ptr + index, tl.load(volume_ptr + i * stride0 + j * stride1 + k * stride2, mask=there), mask=there)


def blend_add(volume, tile, origin, w0, w1, w2) -> None:
    """In place; the arguments of mrisr.ops.tiles."""
    size = [min(n, size - o) for n, size, o in zip(tile.shape, volume.shape, origin)]
    total = size[0] * size[1] * size[2]
    if total:
        part = volume[tuple(slice(o, o + n) for o, n in zip(origin, size))]
        strides = *volume.stride(), *tile.stride()
        blend_add_kernel[(triton.cdiv(total, BLOCK),)](part, tile, w0, w1, w2, total, *size[1:], *strides, BLOCK=BLOCK)


def gather(volume, origin, shape) -> torch.Tensor:
    """float32 [d, h, w], contiguous; the arguments of mrisr.ops.tiles."""
    tile = torch.empty(shape, dtype=torch.float32, device=volume.device)
    if tile.numel():
        last = [n - 1 for n in volume.shape]
        sizes = tile.numel(), *shape[1:], *origin, *last, *volume.stride()
        gather_kernel[(triton.cdiv(tile.numel(), BLOCK),)](tile, volume, *sizes, BLOCK=BLOCK)
    return tile


def _signature(kernel, pointers: dict[str, str]) -> dict[str, str]:
    return {name: pointers.get(name, "i32") for name in kernel.arg_names if name != "BLOCK"}


_ADD = dict.fromkeys(("volume_ptr", "w0_ptr", "w1_ptr", "w2_ptr"), "*fp32")
VARIANTS = [
    (
        f"blend_add_{kind}",
        blend_add_kernel,
        _signature(blend_add_kernel, _ADD | {"tile_ptr": f"*{kind}"}),
        {"BLOCK": BLOCK},
    )
    for kind in ("fp32", "fp16", "bf16")
] + [
    (
        "gather",
        gather_kernel,
        _signature(gather_kernel, {"tile_ptr": "*fp32", "volume_ptr": "*fp32"}),
        {"BLOCK": BLOCK},
    )
]
