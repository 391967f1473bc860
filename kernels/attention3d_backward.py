"""The gradients of window attention in Triton, in two kernels: of the queries; of keys and values.

As attention3d.py, whose windows, blocks and log-sum-exp they take. Sums run in a fixed order, there are no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mrisr.kernels.attention3d import (
    CHOICES,
    LOG2E,
    SIZES,
    Launch,
    _box,
    _keys,
    _load,
    _normalise,
    _rounded,
    _rows_of,
    variant,
)

# Shapes: as there; d_qkv as qkv and dense, grad as out, delta as lse, gradients of gains float32 [programs, heads,
# HEAD_DIM], zeroed. `blocks`: of BLOCK_M queries (key_gradient: BLOCK_N keys) in a whole window.


@triton.jit
def _normalise_gradient(d, x, gain_ptr, eps, HEAD_DIM: tl.constexpr, GAINS: tl.constexpr):
    """(gradient of x, sum over rows of the gradient of the gain) from d, the gradient of `_normalise(x)`."""
    rms = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
    unit = x * rms
    d_gain = tl.sum(d * unit, 0)
    if GAINS:
        d = d * tl.load(gain_ptr + tl.arange(0, HEAD_DIM))[None, :]
    return rms * (d - unit * (tl.sum(d * unit, 1) / HEAD_DIM)[:, None]), d_gain


# Writes the queries' part of d_qkv, and delta, the sum over channels of out * grad, for the next kernel.
@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    d_qkv_ptr, delta_ptr, d_gain_ptr, grad_ptr, out_ptr, lse_ptr, qkv_ptr, mask_ptr, q_gain_ptr, k_gain_ptr,
    stride_n, stride0, stride1, stride2, size0, size1, size2, window0, window1, window2, offset0, offset1, offset2,
    blocks, heads, scale, eps,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr, MASKED: tl.constexpr, NORM: tl.constexpr, Q_GAIN: tl.constexpr, K_GAIN: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = tl.program_id(1)
    size, stride = (size0, size1, size2), (stride_n, stride0, stride1, stride2)
    sample, first, extent = _box(program // blocks, size, (window0, window1, window2), (offset0, offset1, offset2))
    tokens = extent[0] * extent[1] * extent[2]
    token = program % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    if program % blocks * BLOCK_M >= tokens:
        return
    lane = tl.arange(0, HEAD_DIM)
    query = token < tokens
    row, at = _rows_of(token, sample, first, extent, size, stride)
    qkv_ptr += head * HEAD_DIM
    width = heads * HEAD_DIM
    dy = _load(grad_ptr + head * HEAD_DIM, row * width, query, lane)
    y = _load(out_ptr + head * HEAD_DIM, row * width, query, lane)
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(delta_ptr + row * heads + head, delta, mask=query)
    dy = _rounded(dy, WORK, INTERPRETED)
    q = _load(qkv_ptr, at, query, lane)
    if NORM:
        q = _normalise(q.to(tl.float32), q_gain_ptr, eps, HEAD_DIM, Q_GAIN)
    q = _rounded(q, WORK, INTERPRETED)
    log = tl.load(lse_ptr + row * heads + head, mask=query, other=float("inf")) * LOG2E

    dq = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    for start in range(0, tokens, BLOCK_N):
        other = start + tl.arange(0, BLOCK_N)
        other_row, other_at = _rows_of(other, sample, first, extent, size, stride)
        key = _keys(other, tokens, other_row, mask_ptr, MASKED)
        k = _load(qkv_ptr + width, other_at, key, lane)
        if NORM:
            k = _normalise(k.to(tl.float32), k_gain_ptr, eps, HEAD_DIM, K_GAIN)
        k = _rounded(k, WORK, INTERPRETED)
        v = _rounded(_load(qkv_ptr + 2 * width, other_at, key, lane), WORK, INTERPRETED)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
        p = tl.where(key[None, :], tl.exp2(s - log[:, None]), 0.0)
        ds = p * (tl.dot(dy, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(_rounded(ds, WORK, INTERPRETED), k, dq, input_precision=PRECISION)
    dq *= scale
    if NORM:
        q = _load(qkv_ptr, at, query, lane).to(tl.float32)
        dq, d_gain = _normalise_gradient(dq, q, q_gain_ptr, eps, HEAD_DIM, Q_GAIN)
        if Q_GAIN:
            tl.store(d_gain_ptr + (program.to(tl.int64) * heads + head) * HEAD_DIM + lane, d_gain)
    to = d_qkv_ptr + (row * 3 * width + head * HEAD_DIM)[:, None] + lane[None, :]
    tl.store(to, _rounded(dq, WORK, INTERPRETED), mask=query[:, None])


# Writes the parts of keys and values.
@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    d_qkv_ptr, d_gain_ptr, grad_ptr, delta_ptr, lse_ptr, qkv_ptr, mask_ptr, q_gain_ptr, k_gain_ptr,
    stride_n, stride0, stride1, stride2, size0, size1, size2, window0, window1, window2, offset0, offset1, offset2,
    blocks, heads, scale, eps,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr, MASKED: tl.constexpr, NORM: tl.constexpr, Q_GAIN: tl.constexpr, K_GAIN: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = tl.program_id(1)
    size, stride = (size0, size1, size2), (stride_n, stride0, stride1, stride2)
    sample, first, extent = _box(program // blocks, size, (window0, window1, window2), (offset0, offset1, offset2))
    tokens = extent[0] * extent[1] * extent[2]
    token = program % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    if program % blocks * BLOCK_N >= tokens:
        return
    lane = tl.arange(0, HEAD_DIM)
    row, at = _rows_of(token, sample, first, extent, size, stride)
    qkv_ptr += head * HEAD_DIM
    width = heads * HEAD_DIM
    key = _keys(token, tokens, row, mask_ptr, MASKED)
    k = _load(qkv_ptr + width, at, key, lane)
    if NORM:
        k = _normalise(k.to(tl.float32), k_gain_ptr, eps, HEAD_DIM, K_GAIN)
    k = _rounded(k, WORK, INTERPRETED)
    v = _rounded(_load(qkv_ptr + 2 * width, at, key, lane), WORK, INTERPRETED)

    dk = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    dv = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    for start in range(0, tokens, BLOCK_M):
        other = start + tl.arange(0, BLOCK_M)
        query = other < tokens
        other_row, other_at = _rows_of(other, sample, first, extent, size, stride)
        q = _load(qkv_ptr, other_at, query, lane)
        if NORM:
            q = _normalise(q.to(tl.float32), q_gain_ptr, eps, HEAD_DIM, Q_GAIN)
        q = _rounded(q, WORK, INTERPRETED)
        dy = _rounded(_load(grad_ptr + head * HEAD_DIM, other_row * width, query, lane), WORK, INTERPRETED)
        log = tl.load(lse_ptr + other_row * heads + head, mask=query, other=float("inf")) * LOG2E
        delta = tl.load(delta_ptr + other_row * heads + head, mask=query, other=0.0)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E)
        p = tl.where(key[:, None], tl.exp2(s - log[None, :]), 0.0)
        dv = tl.dot(_rounded(p, WORK, INTERPRETED), dy, dv, input_precision=PRECISION)
        ds = p * (tl.dot(v, tl.trans(dy), input_precision=PRECISION) - delta[None, :])
        dk = tl.dot(_rounded(ds, WORK, INTERPRETED), q, dk, input_precision=PRECISION)
    dk *= scale
    if MASKED:
        dk = tl.where(key[:, None], dk, 0.0)  # NaN in a gradient reaches no token that was not looked at
        dv = tl.where(key[:, None], dv, 0.0)
    if NORM:
        k = _load(qkv_ptr + width, at, key, lane).to(tl.float32)
        dk, d_gain = _normalise_gradient(dk, k, k_gain_ptr, eps, HEAD_DIM, K_GAIN)
        if K_GAIN:
            tl.store(d_gain_ptr + (program.to(tl.int64) * heads + head) * HEAD_DIM + lane, d_gain)
    to = d_qkv_ptr + ((row) * 3 * width + head * HEAD_DIM)[:, None] + lane[None, :]
    inside = (token < tokens)[:, None]
    tl.store(to + width, _rounded(dk, WORK, INTERPRETED), mask=inside)
    tl.store(to + 2 * width, _rounded(dv, WORK, INTERPRETED), mask=inside)


def backward(grad, out, lse, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale):
    """Gradients of qkv (contiguous) and of both gains (float32 [2, head_dim]); grad and out dense."""
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    if not d_qkv.numel():
        return d_qkv, lse.new_zeros((2, qkv.shape[4] // (3 * heads)))
    launch = Launch(qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale)
    delta = torch.empty_like(lse)
    d_q_gain, d_k_gain = (launch.gain_partials(kernel, lse) for kernel in ("query", "key"))
    launch.run(query_gradient_kernel, "query", (d_qkv, delta, d_q_gain, grad, out, lse))
    launch.run(key_gradient_kernel, "key", (d_qkv, d_k_gain, grad, delta, lse))
    return d_qkv, torch.stack([d_q_gain.sum(0), d_k_gain.sum(0)])


VARIANTS = [
    variant(function, kernel, *choice)
    for kernel, function in (("query", query_gradient_kernel), ("key", key_gradient_kernel))
    for choice in CHOICES
]
