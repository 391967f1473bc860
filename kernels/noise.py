"""Voxel-keyed Gaussian noise in Triton: Philox4x32-10 and Box-Muller, the arithmetic of
csrc/core/noise_math.h.

log and cos are written out: the GPU's fast log loses its digits near 1, where the radius is small, and the
angle has to be reduced in half turns, exactly, before it is multiplied by pi.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 512


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1


@triton.jit
def _log_unit(u):
    """log(u), u in (0, 1): u = m 2^e, m in [sqrt(1/2), sqrt(2)); Cephes polynomial in m - 1."""
    shifted = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (shifted >> 23).to(tl.float32)
    x = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = x * 7.0376836292e-2 - 1.1514610310e-1
    p = p * x + 1.1676998740e-1
    p = p * x - 1.2420140846e-1
    p = p * x + 1.4249322787e-1
    p = p * x - 1.6668057665e-1
    p = p * x + 2.0000714765e-1
    p = p * x - 2.4999993993e-1
    p = p * x + 3.3333331174e-1
    z = x * x
    return (x + (x * z * p + e * -2.12194440e-4 - 0.5 * z)) + e * 0.693359375


@triton.jit
def _cos_half_turns(t):
    """cos(pi t), t in [-1, 1)."""
    a = tl.abs(t)
    middle = (a > 0.25) & (a < 0.75)
    v = tl.where(middle, 0.5 - a, tl.where(a < 0.5, a, 1.0 - a)) * 3.14159265358979
    v2 = v * v
    s = v + v * v2 * (-1.6666654611e-1 + v2 * (8.3321608736e-3 + v2 * -1.9515295891e-4))
    c = 1.0 - 0.5 * v2 + v2 * v2 * (4.166664568298827e-2 + v2 * (-1.388731625493765e-3 + v2 * 2.443315711809948e-5))
    return tl.where(middle, s, tl.where(a < 0.5, c, -c))


@triton.jit
def normal_at(voxel, key_low, key_high, sample, step):
    """The normal number of each voxel (int64, linear in the whole grid); the keys are integers of any width."""
    zero = tl.zeros(voxel.shape, tl.uint32)
    w0, w1 = _philox(
        (voxel & 0xFFFFFFFF).to(tl.uint32),
        (voxel >> 32).to(tl.uint32),
        zero + sample.to(tl.uint32),
        zero + step.to(tl.uint32),
        zero + key_low.to(tl.uint32),
        zero + key_high.to(tl.uint32),
    )
    u = ((w0 >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-7
    half_turns = (w1 >> 8).to(tl.int32).to(tl.float32) * 1.1920928955078125e-7 - 1.0
    return tl.sqrt(-2.0 * _log_unit(u)) * _cos_half_turns(half_turns)


@triton.jit
def voxel_of(index, size1, size2, origin0, origin1, origin2, grid1, grid2):
    """Linear index in the whole grid of element `index` (int64) of a box [., size1, size2] at `origin`."""
    row = index // size2
    x = origin0 + row // size1
    y = origin1 + row % size1
    return (x * grid1 + y) * grid2 + origin2 + index % size2


@triton.jit(do_not_specialize=["key_low", "key_high", "sample", "step"])
def normal_noise_kernel(
    out_ptr,  # float32 [D, H, W]
    size1,
    size2,
    total,
    origin0,
    origin1,
    origin2,
    grid1,
    grid2,
    key_low,
    key_high,
    sample,
    step,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    voxel = voxel_of(index, size1, size2, origin0, origin1, origin2, grid1, grid2)
    normal = normal_at(voxel, key_low, key_high, sample, step)
    tl.store(out_ptr + index, normal, mask=index < total)


def normal_noise(shape, origin, grid, seed: int, sample: int, step: int, device) -> torch.Tensor:
    """float32 [D, H, W] on `device`; the arguments of mrisr.ops.noise."""
    out = torch.empty(shape, dtype=torch.float32, device=device)
    if out.numel():
        normal_noise_kernel[(triton.cdiv(out.numel(), BLOCK),)](
            out,
            shape[1],
            shape[2],
            out.numel(),
            *origin,
            grid[1],
            grid[2],
            seed & 0xFFFFFFFF,
            (seed >> 32) & 0xFFFFFFFF,
            sample,
            step,
            BLOCK=BLOCK,
        )
    return out


VARIANTS = [
    (
        "normal_noise",
        normal_noise_kernel,
        {"out_ptr": "*fp32"}
        | {name: "i32" for name in ("size1", "size2", "total", "origin0", "origin1", "origin2", "grid1", "grid2")}
        | {name: "i64" for name in ("key_low", "key_high", "sample", "step")},
        {"BLOCK": BLOCK},
    )
]
