"""One step of a diffusion sampler in one pass: clamp, solver update, voxel-keyed noise.

The arithmetic of csrc/core/sampling.h. Coefficients are a row of a table, chosen by a counter in device memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mrisr.kernels.noise import normal_at

BLOCK = 1024
COLUMNS = 4


@triton.jit(do_not_specialize=["low", "high"])
def sampler_step_kernel(
    next_ptr,  # float32 [D, H, W], as x0, x and before
    x0_ptr,
    x_ptr,
    f_ptr,  # float32, float16 or bfloat16
    before_ptr,
    table_ptr,  # float32 [rows, 4]: a, b, c, d
    clock_ptr,  # int64 [3]: step, sample, seed
    rows,
    total,
    low,
    high,
    STORE: tl.constexpr,
    BEFORE: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    step = tl.load(clock_ptr)
    inside = (step >= 0) & (step < rows)
    row = table_ptr + tl.where(inside, step, 0) * 4
    broken = tl.where(inside, 0.0, float("nan"))  # a step without a row must be seen, not guessed
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = index < total
    x = tl.load(x_ptr + index, mask=there)
    x0 = tl.load(f_ptr + index, mask=there).to(tl.float32)
    if STORE:
        clamp = tl.where(x0 < low, low, tl.where(x0 > high, high, x0))
        x0 = tl.where(x0 - x0 == 0.0, clamp, x0)  # what is no number stays none, infinities too
        tl.store(x0_ptr + index, x0, mask=there)
    following = (tl.load(row) + broken) * x + tl.load(row + 1) * x0
    if BEFORE:
        following += tl.load(row + 2) * tl.load(before_ptr + index, mask=there)
    if NOISE:
        seed = tl.load(clock_ptr + 2)
        normal = normal_at(index, seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, tl.load(clock_ptr + 1), step + 1)
        following += tl.load(row + 3) * normal
    tl.store(next_ptr + index, following, mask=there)


def sampler_step(x, f, before, table, clock, low: float, high: float, noise: bool, store: bool):
    """(next, x0) of contiguous float32 x; x0 is empty unless `store`."""
    following, x0 = torch.empty_like(x), torch.empty_like(x) if store else x.new_empty(0)
    if x.numel():
        sampler_step_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            following,
            x0 if store else following,
            x,
            f,
            x if before is None else before,
            table,
            clock,
            table.shape[0],
            x.numel(),
            low,
            high,
            STORE=store,
            BEFORE=before is not None,
            NOISE=noise,
            BLOCK=BLOCK,
        )
    return following, x0


def _variant(f_type: str, store: bool, before: bool, noise: bool):
    signature = {name: "*fp32" for name in ("next_ptr", "x0_ptr", "x_ptr", "before_ptr", "table_ptr")}
    signature |= {"f_ptr": f"*{f_type}", "clock_ptr": "*i64", "low": "fp32", "high": "fp32"}
    signature |= dict.fromkeys(("rows", "total"), "i32")
    flags = {"STORE": store, "BEFORE": before, "NOISE": noise, "BLOCK": BLOCK}
    name = "_".join(part for part, there in (("clamp", store), ("before", before), ("noise", noise)) if there)
    return f"sampler_step_{f_type}_{name or 'plain'}", sampler_step_kernel, signature, flags


VARIANTS = [
    _variant(dtype, clamp, before, noise)
    for dtype in ("fp32", "bf16", "fp16")
    for clamp, before, noise in ((False, True, False), (True, False, False), (True, True, False), (True, True, True))
]
