"""Backward pass of group norm + FiLM + SiLU in Triton: `sums` (per slab and channel) and `apply` (elementwise dx); what
lies between is float64 PyTorch on a few numbers.

Layouts and dtypes as in kernels/group_norm.py. Sums run in a fixed order, there are no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SLAB = 16384  # voxels per partial, as in the native core
VOXELS, CHANNELS = 64, 16  # a tile
BLOCK = 1024


@triton.jit
def _dz(grad, d, a, b, SILU: tl.constexpr):
    """The gradient before the activation, z = a d + b."""
    if SILU:
        z = a * d + b
        s = 1.0 / (1.0 + tl.exp(-z))
        grad = grad * s * (1.0 + z * (1.0 - s))
    return grad


@triton.jit
def sums_kernel(
    sums_ptr,  # float64 [N, slabs, C, 2]
    grad_ptr,
    x_ptr,
    a_ptr,  # a, b, m: float32 [N, C]
    b_ptr,
    m_ptr,
    channels,
    voxels,
    slabs,
    SLAB: tl.constexpr,
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(channels, CHANNELS)
    piece = unit // chunks
    sample = piece // slabs
    first_voxel = piece % slabs * SLAB
    c = unit % chunks * CHANNELS + tl.arange(0, CHANNELS)
    valid = c < channels
    line = sample * channels + c
    a = tl.load(a_ptr + line, mask=valid, other=0.0)[None, :]
    b = tl.load(b_ptr + line, mask=valid, other=0.0)[None, :]
    m = tl.load(m_ptr + line, mask=valid, other=0.0)[None, :]
    count = tl.minimum(voxels - first_voxel, SLAB)
    lane = tl.arange(0, VOXELS).to(tl.int64)
    first = tl.zeros((VOXELS, CHANNELS), tl.float32)
    second = tl.zeros((VOXELS, CHANNELS), tl.float32)
    for start in range(0, count, VOXELS):
        voxel = first_voxel + start + lane
        inside = (start + lane < count)[:, None] & valid[None, :]
        if LAST:
            offset = (sample * voxels + voxel[:, None]) * channels + c[None, :]
        else:
            offset = line[None, :] * voxels + voxel[:, None]
        d = tl.where(inside, tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32) - m, 0.0)
        grad = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        dz = tl.where(inside, _dz(grad, d, a, b, SILU), 0.0)
        first += dz
        second += dz * d
    to = sums_ptr + (piece * channels + c) * 2
    tl.store(to, tl.sum(first.to(tl.float64), 0), mask=valid)
    tl.store(to + 1, tl.sum(second.to(tl.float64), 0), mask=valid)


@triton.jit
def dx_kernel(
    dx_ptr,
    grad_ptr,
    x_ptr,
    mask_ptr,  # uint8 [N, voxels]
    a_ptr,  # a, b, m, p, u, v: float32 [N, C]
    b_ptr,
    m_ptr,
    p_ptr,
    u_ptr,
    v_ptr,
    channels,
    voxels,
    total,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
    MASKED: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    sample = index // (voxels.to(tl.int64) * channels)
    if LAST:
        line = sample * channels + index % channels
        voxel = index // channels  # of all samples
    else:
        line = index // voxels
        voxel = sample * voxels + index % voxels
    a = tl.load(a_ptr + line, mask=inside, other=0.0)
    b = tl.load(b_ptr + line, mask=inside, other=0.0)
    d = tl.load(x_ptr + index, mask=inside, other=0.0).to(tl.float32) - tl.load(m_ptr + line, mask=inside, other=0.0)
    dz = _dz(tl.load(grad_ptr + index, mask=inside, other=0.0).to(tl.float32), d, a, b, SILU)
    back = tl.load(u_ptr + line, mask=inside, other=0.0) + tl.load(v_ptr + line, mask=inside, other=0.0) * d
    if MASKED:
        active = tl.load(mask_ptr + voxel, mask=inside, other=0) != 0
        back = tl.where(active, back, 0.0)
    dx = tl.load(p_ptr + line, mask=inside, other=0.0) * dz - back
    tl.store(dx_ptr + index, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def sums(grad, x, a, b, m, silu: bool) -> torch.Tensor:
    """float64 [N, slabs, C, 2]: sum of dz and of dz (x - m). grad, x dense, in one layout; a, b, m float32 [N, C]."""
    n, c = x.shape[:2]
    voxels = x.shape[2] * x.shape[3] * x.shape[4]
    slabs = triton.cdiv(voxels, SLAB)
    result = torch.empty((n, slabs, c, 2), dtype=torch.float64, device=x.device)
    if result.numel():
        grid = (n * slabs * triton.cdiv(c, CHANNELS),)
        sizes = dict(SLAB=SLAB, VOXELS=VOXELS, CHANNELS=CHANNELS)
        sums_kernel[grid](result, grad, x, a, b, m, c, voxels, slabs, **sizes, LAST=not x.is_contiguous(), SILU=silu)
    return result


def apply(grad, x, a, b, m, p, u, v, mask, silu: bool) -> torch.Tensor:
    """dx = p dz - active (u + v (x - m)), as x. mask: uint8 [N, 1, D, H, W] or None."""
    dx = torch.empty_like(x)
    if x.numel():
        c, voxels = x.shape[1], x.shape[2] * x.shape[3] * x.shape[4]
        flags = dict(LAST=not x.is_contiguous(), SILU=silu, MASKED=mask is not None)
        maps = (dx, grad, x, x if mask is None else mask, a, b, m, p, u, v)
        dx_kernel[(triton.cdiv(x.numel(), BLOCK),)](*maps, c, voxels, x.numel(), BLOCK=BLOCK, **flags)
    return dx


# What tests/native/compile_only.py compiles without a GPU: (name, kernel, signature, constants).
def _variants() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    variants = []
    for dtype in ("fp32", "fp16", "bf16"):
        for last in (False, True):
            layout = "last" if last else "first"
            maps = {"grad_ptr": f"*{dtype}", "x_ptr": f"*{dtype}"}
            sums_signature = {"sums_ptr": "*fp64", **maps, **{f"{k}_ptr": "*fp32" for k in "abm"}}
            sums_signature |= {"channels": "i32", "voxels": "i32", "slabs": "i32"}
            tile = {"SLAB": SLAB, "VOXELS": VOXELS, "CHANNELS": CHANNELS, "LAST": last, "SILU": True}
            variants.append((f"sums[{dtype},{layout},silu]", sums_kernel, sums_signature, tile))
            for masked in (False, True):
                signature = {"dx_ptr": f"*{dtype}", **maps, "mask_ptr": "*u8"}
                signature |= {f"{k}_ptr": "*fp32" for k in "abmpuv"}
                signature |= {"channels": "i32", "voxels": "i32", "total": "i64"}
                flags = {"BLOCK": BLOCK, "LAST": last, "SILU": True, "MASKED": masked}
                variants.append((f"dx[{dtype},{layout}{',masked' if masked else ''}]", dx_kernel, signature, flags))
    return variants


VARIANTS = _variants()
