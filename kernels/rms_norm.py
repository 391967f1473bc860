"""Channel norm + FiLM + SiLU in Triton, forward and backward, one pass each: a program has a tile of voxels with all
their channels.

Layouts: dense [N, C, D, H, W] or channels-last. float32, float16, bfloat16; arithmetic in float32, sums over voxels
joined in float64, offsets in int64. Sums run in a fixed order, there are no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SLAB = 2048  # voxels per partial sum, as in the native core
TILE = 2048  # elements of a tile


@triton.jit
def _offsets(sample, voxel, c, channels, voxels, LAST: tl.constexpr):
    if LAST:
        offset = (sample * voxels + voxel[:, None]) * channels + c[None, :]
    else:
        offset = (sample * channels + c[None, :]) * voxels + voxel[:, None]
    return offset


@triton.jit
def _film(scale_ptr, shift_ptr, line, valid, SCALE: tl.constexpr, SHIFT: tl.constexpr):
    """(1 + scale, shift) of the channels of a sample."""
    gain = tl.where(valid, 1.0, 0.0)
    shift = tl.zeros_like(gain)
    if SCALE:
        gain += tl.load(scale_ptr + line, mask=valid, other=0.0)
    if SHIFT:
        shift += tl.load(shift_ptr + line, mask=valid, other=0.0)
    return gain[None, :], shift[None, :]


@triton.jit
def forward_kernel(
    y_ptr,
    x_ptr,
    scale_ptr,  # float32 [N, C]
    shift_ptr,
    channels,
    voxels,
    eps,
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(voxels, VOXELS)
    sample = unit // tiles
    voxel = unit % tiles * VOXELS + tl.arange(0, VOXELS)
    c = tl.arange(0, CHANNELS)
    valid = c < channels
    inside = (voxel < voxels)[:, None] & valid[None, :]
    offset = _offsets(sample, voxel, c, channels, voxels, LAST)
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    gain, shift = _film(scale_ptr, shift_ptr, sample * channels + c, valid, SCALE, SHIFT)
    z = x * tl.rsqrt(tl.sum(x * x, 1) / channels + eps)[:, None] * gain + shift
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    tl.store(y_ptr + offset, z.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dx_ptr,
    sums_ptr,  # float64 [N, slabs, C, 2]
    grad_ptr,
    x_ptr,
    scale_ptr,
    shift_ptr,
    channels,
    voxels,
    slabs,
    eps,
    SLAB: tl.constexpr,
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    sample = unit // slabs
    first_voxel = unit % slabs * SLAB
    c = tl.arange(0, CHANNELS)
    valid = c < channels
    gain, shift = _film(scale_ptr, shift_ptr, sample * channels + c, valid, SCALE, SHIFT)
    count = tl.minimum(voxels - first_voxel, SLAB)
    lane = tl.arange(0, VOXELS).to(tl.int64)
    first = tl.zeros((VOXELS, CHANNELS), tl.float32)
    second = tl.zeros((VOXELS, CHANNELS), tl.float32)
    for start in range(0, count, VOXELS):
        inside = (start + lane < count)[:, None] & valid[None, :]
        offset = _offsets(sample, first_voxel + start + lane, c, channels, voxels, LAST)
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        dz = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(x * x, 1) / channels + eps)[:, None]
        normed = x * r
        if SILU:
            z = normed * gain + shift
            s = 1.0 / (1.0 + tl.exp(-z))
            dz = dz * s * (1.0 + z * (1.0 - s))
        first += dz
        second += dz * normed
        w = dz * gain
        dx = r * (w - normed * (tl.sum(w * normed, 1) / channels)[:, None])
        tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    to = sums_ptr + (unit * channels + c) * 2
    tl.store(to, tl.sum(first.to(tl.float64), 0), mask=valid)
    tl.store(to + 1, tl.sum(second.to(tl.float64), 0), mask=valid)


def _tile(channels: int) -> dict[str, int]:
    wide = triton.next_power_of_2(channels)
    return {"VOXELS": max(1, TILE // wide), "CHANNELS": wide}


def _sizes(x: torch.Tensor) -> tuple[int, int, int]:
    n, c, d, h, w = x.shape
    return n, c, d * h * w


def _flags(x, scale, shift, silu: bool) -> dict[str, bool]:
    return dict(LAST=not x.is_contiguous(), SILU=silu, SCALE=scale is not None, SHIFT=shift is not None)


def forward(y, x, scale, shift, silu: bool, eps: float) -> None:
    """Write y (may be x); x, y [N, C, D, H, W], dense in one layout; scale, shift float32 [N, C] or None."""
    n, c, voxels = _sizes(x)
    if x.numel():
        tile = _tile(c)
        film = (x if scale is None else scale, x if shift is None else shift)
        grid = (n * triton.cdiv(voxels, tile["VOXELS"]),)
        forward_kernel[grid](y, x, *film, c, voxels, eps, **tile, **_flags(x, scale, shift, silu))


def backward(dx, sums, grad, x, scale, shift, silu: bool, eps: float) -> None:
    """Write dx, and sums, float64 [N, slabs, C, 2]: of dz, and of dz x / rms."""
    n, c, voxels = _sizes(x)
    if x.numel():
        film = (x if scale is None else scale, x if shift is None else shift)
        slabs, flags = sums.shape[1], _flags(x, scale, shift, silu)
        backward_kernel[(n * slabs,)](dx, sums, grad, x, *film, c, voxels, slabs, eps, SLAB=SLAB, **_tile(c), **flags)


# What tests/native/compile_only.py compiles without a GPU: (name, kernel, signature, constants).
def _variants() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    variants = []
    for dtype in ("fp32", "fp16", "bf16"):
        for last in (False, True):
            for channels in (32, 128):
                label = f"[{dtype},{'last' if last else 'first'},C={channels}]"
                film = {"scale_ptr": "*fp32", "shift_ptr": "*fp32", "channels": "i32", "voxels": "i32"}
                flags = {**_tile(channels), "LAST": last, "SILU": True, "SCALE": True, "SHIFT": True}
                maps = {"y_ptr": f"*{dtype}", "x_ptr": f"*{dtype}"}
                variants.append((f"forward{label}", forward_kernel, {**maps, **film, "eps": "fp32"}, flags))
                maps = {"dx_ptr": f"*{dtype}", "sums_ptr": "*fp64", "grad_ptr": f"*{dtype}", "x_ptr": f"*{dtype}"}
                signature = {**maps, **film, "slabs": "i32", "eps": "fp32"}
                variants.append((f"backward{label}", backward_kernel, signature, {"SLAB": SLAB, **flags}))
    return variants


VARIANTS = _variants()
