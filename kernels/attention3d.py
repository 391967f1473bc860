"""Window attention in Triton, and what its gradients (attention3d_backward.py) share with it.

A program owns a block of queries (or of keys) of one head and one window. It finds its window's box from the window's
number, cut to the volume, and reads packed [N, D, H, W, 3, heads, head_dim] memory by token: nothing is partitioned
beforehand. Softmax runs online over blocks of keys (Milakov and Gimelshein 2018; Dao et al. 2022). float32, float16,
bfloat16; sums in float32, products of float32 as three TF32 products; offsets in int64. Sums run in a fixed order,
there are no atomics.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# Shapes: qkv [N, D, H, W, 3, heads, HEAD_DIM] with strides; out [N, D, H, W, heads, HEAD_DIM]; lse float32 [N, D, H, W,
# heads]; mask uint8 [N, D, H, W]; gains float32 [HEAD_DIM]. `blocks`: of BLOCK_M queries in a whole window.

# Sizes change from scan to scan: specialised to, each would be compiled again. (In a tuple they always are.)
SIZES = [name + axis for name in ("size", "window", "offset") for axis in "012"] + ["blocks", "heads"]


@triton.jit
def _axis(index, size, window, offset):
    """(first token, extent) of window `index` along one axis."""
    first = tl.maximum(index * window - offset, 0)
    return first, tl.minimum((index + 1) * window - offset, size) - first


@triton.jit
def _box(unit, size, window, offset):
    """(sample, first tokens, extents) of window `unit`; token i of an axis is in window (i + offset) // window, and
    windows are counted last axis fastest."""
    grid0 = tl.cdiv(size[0] + offset[0], window[0])
    grid1 = tl.cdiv(size[1] + offset[1], window[1])
    grid2 = tl.cdiv(size[2] + offset[2], window[2])
    first0, extent0 = _axis(unit // grid2 // grid1 % grid0, size[0], window[0], offset[0])
    first1, extent1 = _axis(unit // grid2 % grid1, size[1], window[1], offset[1])
    first2, extent2 = _axis(unit % grid2, size[2], window[2], offset[2])
    sample = (unit // grid2 // grid1 // grid0).to(tl.int64)
    return sample, (first0, first1, first2), (extent0, extent1, extent2)


@triton.jit
def _rows_of(token, sample, first, extent, size, stride):
    """(row of dense [N, D, H, W, ...], offset in qkv) of tokens of a window."""
    x = first[0] + token // (extent[1] * extent[2])
    y = (first[1] + token // extent[2] % extent[1]).to(tl.int64)
    z = (first[2] + token % extent[2]).to(tl.int64)
    row = ((sample * size[0] + x) * size[1] + y) * size[2] + z
    return row, sample * stride[0] + x * stride[1] + y * stride[2] + z * stride[3]


@triton.jit
def _normalise(x, gain_ptr, eps, HEAD_DIM: tl.constexpr, GAINS: tl.constexpr):
    """x [rows, HEAD_DIM] float32, divided by its rows' root mean square, times the gain."""
    x = x * tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
    if GAINS:
        x = x * tl.load(gain_ptr + tl.arange(0, HEAD_DIM))[None, :]
    return x


@triton.jit
def _load(ptr, offset, inside, lane):
    """[rows, head_dim] at `ptr` + offset; 0 where not inside."""
    return tl.load(ptr + offset[:, None] + lane[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _rounded(x, WORK: tl.constexpr, INTERPRETED: tl.constexpr):
    """x in WORK. The interpreter cuts bfloat16 off instead of rounding and holds it as integers, which it would
    multiply as such: there x is rounded as the hardware does, and stays float32."""
    if INTERPRETED:
        x = x.to(tl.float32)
        if tl.bfloat16 == WORK:
            bits = x.to(tl.int32, bitcast=True)
            nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) & -65536).to(tl.float32, bitcast=True)
            x = tl.where(x == x, nearest, x)
        else:
            x = x.to(WORK).to(tl.float32)
    else:
        x = x.to(WORK)
    return x


@triton.jit
def _keys(token, tokens, row, mask_ptr, MASKED: tl.constexpr):
    """Which tokens of a window are keys."""
    key = token < tokens
    if MASKED:
        key = key & (tl.load(mask_ptr + row, mask=key, other=0) != 0)
    return key


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    out_ptr, lse_ptr, qkv_ptr, mask_ptr, q_gain_ptr, k_gain_ptr,
    stride_n, stride0, stride1, stride2, size0, size1, size2, window0, window1, window2, offset0, offset1, offset2,
    blocks, heads, scale, eps,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr, MASKED: tl.constexpr, NORM: tl.constexpr, Q_GAIN: tl.constexpr, K_GAIN: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = tl.program_id(1)
    size, stride = (size0, size1, size2), (stride_n, stride0, stride1, stride2)
    sample, first, extent = _box(program // blocks, size, (window0, window1, window2), (offset0, offset1, offset2))
    tokens = extent[0] * extent[1] * extent[2]
    token = program % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    if program % blocks * BLOCK_M >= tokens:  # the window is cut by the volume's edge
        return
    lane = tl.arange(0, HEAD_DIM)
    query = token < tokens
    row, at = _rows_of(token, sample, first, extent, size, stride)
    qkv_ptr += head * HEAD_DIM
    width = heads * HEAD_DIM
    q = _load(qkv_ptr, at, query, lane)
    if NORM:
        q = _normalise(q.to(tl.float32), q_gain_ptr, eps, HEAD_DIM, Q_GAIN)
    q = _rounded(q, WORK, INTERPRETED)

    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    count = 0
    for start in range(0, tokens, BLOCK_N):
        other = start + tl.arange(0, BLOCK_N)
        other_row, other_at = _rows_of(other, sample, first, extent, size, stride)
        key = _keys(other, tokens, other_row, mask_ptr, MASKED)
        k = _load(qkv_ptr + width, other_at, key, lane)
        if NORM:
            k = _normalise(k.to(tl.float32), k_gain_ptr, eps, HEAD_DIM, K_GAIN)
        s = tl.dot(q, tl.trans(_rounded(k, WORK, INTERPRETED)), input_precision=PRECISION) * (scale * LOG2E)
        s = tl.where(key[None, :], s, float("-inf"))
        peak = tl.maximum(top, tl.max(s, 1))
        # Before the first key both are -inf, and -inf - -inf is NaN.
        rescale = tl.where(peak == top, 1.0, tl.exp2(top - peak))
        p = tl.exp2(s - peak[:, None])
        if MASKED:
            p = tl.where(key[None, :], p, 0.0)
            count += tl.sum(key.to(tl.int32), 0)
        total = total * rescale + tl.sum(p, 1)
        v = _load(qkv_ptr + 2 * width, other_at, key, lane)
        acc = tl.dot(
            _rounded(p, WORK, INTERPRETED),
            _rounded(v, WORK, INTERPRETED),
            acc * rescale[:, None],
            input_precision=PRECISION,
        )
        top = peak

    lse = (top + tl.log2(total)) * LN2
    if MASKED:
        # No key: the result is 0, and an infinite log-sum-exp makes every p of the backward pass 0.
        total = tl.where(count > 0, total, 1.0)
        lse = tl.where(count > 0, lse, float("inf"))
    to = out_ptr + row[:, None] * width + head * HEAD_DIM + lane[None, :]
    tl.store(to, _rounded(acc / total[:, None], WORK, INTERPRETED), mask=query[:, None])
    if SAVE:
        tl.store(lse_ptr + row * heads + head, lse, mask=query)


class Tiles(NamedTuple):
    """Sizes of the blocks of queries and keys, and how each kernel is launched."""

    block_m: int
    block_n: int
    warps: int
    stages: int


# By head dim, for 16-bit types and for float32: chosen so that nothing spills on sm_80, sm_90 and sm_100 as far as that
# can be had (tests/native/compile_only.py prints it). No device has been asked yet which is fastest.
_HALF = {
    "forward": {32: Tiles(128, 64, 4, 2), 64: Tiles(128, 64, 8, 2), 128: Tiles(128, 64, 8, 2)},
    "query": {32: Tiles(64, 64, 4, 2), 64: Tiles(64, 64, 8, 2), 128: Tiles(64, 64, 8, 2)},
    "key": {32: Tiles(64, 64, 4, 2), 64: Tiles(64, 64, 8, 2), 128: Tiles(32, 64, 8, 2)},
}
_SINGLE = {
    "forward": {32: Tiles(64, 32, 4, 2), 64: Tiles(32, 32, 4, 1), 128: Tiles(32, 32, 8, 1)},
    "query": {32: Tiles(32, 32, 4, 1), 64: Tiles(32, 32, 8, 1), 128: Tiles(32, 32, 8, 1)},
    "key": {32: Tiles(32, 32, 4, 1), 64: Tiles(32, 32, 8, 1), 128: Tiles(32, 32, 8, 1)},
}


def tiles(dtype: torch.dtype, head_dim: int, kernel: str) -> Tiles:
    """kernel: "forward", "query" or "key"."""
    return (_SINGLE if dtype == torch.float32 else _HALF)[kernel][head_dim]


def _constants(dtype, head_dim: int, tile: Tiles, masked: bool, norm: bool, q_gain: bool, k_gain: bool) -> dict:
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "WORK": {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype],
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
        "INTERPRETED": os.environ.get("TRITON_INTERPRET") == "1",
        "MASKED": masked,
        "NORM": norm,
        "Q_GAIN": q_gain,
        "K_GAIN": k_gain,
    }


class Launch:
    """What the kernels of one call share: geometry, constants, grids."""

    def __init__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale) -> None:
        self.head_dim = qkv.shape[4] // (3 * heads)
        self.heads, size = heads, tuple(qkv.shape[1:4])
        self.dtype = qkv.dtype
        window = tuple(min(w, s + o) for w, s, o in zip(window, size, offset))
        grid = tuple((s + o + w - 1) // w for s, o, w in zip(size, offset, window))
        self.tokens = math.prod(min(w, s) for w, s in zip(window, size))
        self.windows = qkv.shape[0] * math.prod(grid)
        self.inputs = [qkv if t is None else t for t in (qkv, mask, q_gain, k_gain)]
        self.geometry = (*qkv.stride()[:4], *size, *window, *offset)
        self.numbers = (heads, scale, eps or 0.0)
        self.flags = (mask is not None, eps is not None, q_gain is not None, k_gain is not None)

    def blocks(self, kernel: str) -> int:
        """Blocks of a whole window, as `kernel` cuts it."""
        tile = tiles(self.dtype, self.head_dim, kernel)
        return -(-self.tokens // (tile.block_n if kernel == "key" else tile.block_m))

    def run(self, function, kernel: str, outputs: tuple, **more) -> None:
        tile, blocks = tiles(self.dtype, self.head_dim, kernel), self.blocks(kernel)
        constants = _constants(self.dtype, self.head_dim, tile, *self.flags) | more
        arguments = (*outputs, *self.inputs, *self.geometry, blocks, *self.numbers)
        launch = {"num_warps": tile.warps, "num_stages": tile.stages}
        function[(self.windows * blocks, self.heads)](*arguments, **constants, **launch)

    def gain_partials(self, kernel: str, like: torch.Tensor) -> torch.Tensor:
        rows = self.windows * self.blocks(kernel) * self.heads
        return like.new_zeros((rows, self.head_dim), dtype=torch.float32)


def forward(qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
    """(y, log-sum-exp), the arguments of mrisr.ops.attention3d's operator; gains float32, mask uint8."""
    out = qkv.new_empty((*qkv.shape[:4], qkv.shape[4] // 3))
    lse = qkv.new_empty((*qkv.shape[:4], heads) if save else (0,), dtype=torch.float32)
    if out.numel():
        launch = Launch(qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale)
        launch.run(forward_kernel, "forward", (out, lse), SAVE=save)
    return out, lse


def variant(
    function, kernel: str, dtype: str, head_dim: int, masked: bool = False, norm: bool = False, **more: bool
) -> tuple:
    """A compilation of `function` for tests/native/compile_only.py; `more`: constants of its own."""
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    tile = tiles(kinds[dtype], head_dim, kernel)
    constants = _constants(kinds[dtype], head_dim, tile, masked, norm, norm, norm) | more
    signature = {}
    for name in function.arg_names:
        if name in ("qkv_ptr", "d_qkv_ptr", "out_ptr", "grad_ptr"):
            signature[name] = f"*{dtype}"
        elif name.endswith("_ptr"):
            signature[name] = "*u8" if name == "mask_ptr" else "*fp32"
        elif name not in constants:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
    label = f"{kernel}[{dtype},{head_dim}{',masked' if masked else ''}{',norm' if norm else ''}]"
    return label, function, signature, constants, {"num_warps": tile.warps, "num_stages": tile.stages}


# float16 makes the machine code of bfloat16, but for the type of the products: one of each kernel stands for all.
CHOICES = (
    *((dtype, head_dim) for dtype in ("bf16", "fp32") for head_dim in (32, 64, 128)),
    ("fp16", 64),
    ("bf16", 64, True, True),
)
VARIANTS = [variant(forward_kernel, "forward", *choice, SAVE=True) for choice in CHOICES]
