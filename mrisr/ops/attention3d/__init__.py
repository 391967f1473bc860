"""Softmax attention over a 3D grid of tokens, everywhere or in windows, with query/key normalisation in the same pass.

    y_i = sum_j softmax_j(scale * q_i . k_j) v_j,   j over the active tokens of i's window

At the edges of the volume windows are cut, not padded. Packed queries, keys and values are read where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import choose
from mrisr.ops._layout import triple, work_dtype
from mrisr.ops._library import custom_op
from mrisr.ops.attention3d.backends import FAMILY
from mrisr.ops.attention3d.reference import reference, segments

__all__ = ["FLOP", "attention3d", "reference"]

MAX_WINDOW = 2**20  # a window larger than any volume is the same as none, and indices stay small


def attention3d(
    qkv: torch.Tensor,
    heads: int,
    *,
    window: int | None = 8,
    shift: int | Sequence[int] = 0,
    mask: torch.Tensor | None = None,
    norm_eps: float | None = None,
    q_gain: torch.Tensor | None = None,
    k_gain: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention of the tokens of a volume to each other.

    Args:
        qkv: [N, D, H, W, 3 * heads * head_dim], queries, keys and values one after the other, heads inside each: what
            one linear layer on NDHWC memory gives. Any strides, the last one 1 (else it is copied). float32, float16,
            bfloat16, float64; sums run in float32 or better.
        heads: number of heads.
        window: edge of the cubic windows in tokens; None: every token attends to the whole volume.
        shift: windows start this many tokens before the first token, one number or one per axis. A part of a volume
            that starts at token o of it has the windows of the whole by shift + o.
        mask: [N, D, H, W] bool or uint8: tokens that are keys. The others' keys and values are not looked at, NaN or
            not; their queries are answered. Where a window has no key the result is 0.
        norm_eps: queries and keys are divided by sqrt(mean(x^2) + norm_eps) over the head_dim (RMS norm; Henry et al.
            2020, Dehghani et al. 2023); None: they are not.
        q_gain, k_gain: [head_dim], multiplied in after that normalisation.
        scale: of the logits; head_dim ** -0.5 unless given.

    Returns:
        [N, D, H, W, heads * head_dim], contiguous, dtype of `qkv`.

    Performance: Triton takes head_dim 32, 64 and 128; the native core any up to 512 (CPU); "sdpa" cuts windows out,
    calls PyTorch, and gives no gradients. On CUDA "sdpa" comes before Triton only for calls like those that it won
    where both were measured (mrisr/ops/attention3d/measured.py).

    Raises:
        UsageError: sizes do not fit. BackendError: `backend` was asked for and cannot run.
    """
    _check(qkv, heads, window, mask, norm_eps, q_gain, k_gain, scale)
    shift = triple(shift, "attention3d", "shift")
    if window is None:
        if any(shift):
            raise UsageError(f"attention3d: a shift needs windows; shift={shift}, window=None")
        box, offset = list(qkv.shape[1:4]), [0, 0, 0]
    else:
        box, offset = [window] * 3, [s % window for s in shift]
    if scale is None:
        scale = (qkv.shape[-1] // (3 * heads)) ** -0.5
    if qkv.stride(-1) != 1:
        qkv = qkv.contiguous()
    mask = None if mask is None else mask.to(torch.uint8).contiguous()
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (qkv, q_gain, k_gain))
    return _attention3d(qkv, heads, box, offset, mask, q_gain, k_gain, norm_eps, float(scale), save, backend or "")[0]


def _check(qkv, heads, window, mask, norm_eps, q_gain, k_gain, scale) -> None:
    shape = tuple(qkv.shape)
    if qkv.ndim != 5 or not qkv.is_floating_point():
        raise UsageError(
            f"attention3d: qkv must be floating point [N, D, H, W, 3 * heads * head_dim]; it is {qkv.dtype} {shape}"
        )
    if heads < 1 or shape[4] < 1 or shape[4] % (3 * heads):
        raise UsageError(
            f"attention3d: the last axis of qkv ({shape[4]}) must be 3 * heads * head_dim; heads={heads}, shape={shape}"
        )
    if window is not None and not 1 <= window <= MAX_WINDOW:
        raise UsageError(f"attention3d: window must be None or from 1 to {MAX_WINDOW} tokens; it is {window}")
    if scale is not None and not math.isfinite(scale):
        raise UsageError(f"attention3d: scale must be finite; it is {scale}")
    if norm_eps is not None and not (norm_eps > 0 and math.isfinite(norm_eps)):
        raise UsageError(f"attention3d: norm_eps must be None or positive; it is {norm_eps}")
    if norm_eps is None and (q_gain is not None or k_gain is not None):
        raise UsageError("attention3d: q_gain and k_gain belong to the normalisation; give norm_eps too")
    head_dim = shape[4] // (3 * heads)
    expected = {"mask": shape[:4], "q_gain": (head_dim,), "k_gain": (head_dim,)}
    for name, tensor in {"mask": mask, "q_gain": q_gain, "k_gain": k_gain}.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != expected[name]:
            raise UsageError(
                f"attention3d: {name} must be {list(expected[name])}; it is {list(tensor.shape)}, qkv.shape={shape}"
            )
        if tensor.device != qkv.device:
            raise UsageError(f"attention3d: {name} is on {tensor.device}, qkv on {qkv.device}; move one to the other")
    if mask is not None and mask.dtype not in (torch.bool, torch.uint8):
        raise UsageError(f"attention3d: mask must be bool or uint8; it is {mask.dtype}")


@custom_op("mrisr::attention3d", mutates_args=())
def _attention3d(
    qkv: torch.Tensor,
    heads: int,
    window: list[int],
    offset: list[int],
    mask: torch.Tensor | None,
    q_gain: torch.Tensor | None,
    k_gain: torch.Tensor | None,
    eps: float | None,
    scale: float,
    save: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, log-sum-exp of the scaled logits [N, D, H, W, heads], or nothing of it where `save` is false). Token i of an
    axis is in window (i + offset) // window."""
    args = (qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save)
    return choose(FAMILY, backend, *args).run(*args)


@_attention3d.register_fake
def _(qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save, backend):
    out = qkv.new_empty((*qkv.shape[:4], qkv.shape[4] // 3))
    return out, qkv.new_empty((*qkv.shape[:4], heads) if save else (0,), dtype=work_dtype(qkv.dtype))


def _save(ctx, inputs, output) -> None:
    qkv, ctx.heads, ctx.window, ctx.offset, mask, q_gain, k_gain, ctx.eps, ctx.scale, _, ctx.backend = inputs
    ctx.save_for_backward(qkv, mask, q_gain, k_gain, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _lse):
    qkv, mask, q_gain, k_gain, out, lse = ctx.saved_tensors
    call = (ctx.heads, ctx.window, ctx.offset, mask, q_gain, k_gain, ctx.eps, ctx.scale, ctx.backend)
    d_qkv, d_gains = _attention3d_backward(grad, out, lse, qkv, *call)
    d_q_gain = None if q_gain is None else d_gains[0].to(q_gain.dtype)
    d_k_gain = None if k_gain is None else d_gains[1].to(k_gain.dtype)
    return d_qkv, None, None, None, None, d_q_gain, d_k_gain, None, None, None, None


_attention3d.register_autograd(_backward, setup_context=_save)


@custom_op("mrisr::attention3d_backward", mutates_args=())
def _attention3d_backward(
    grad: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    qkv: torch.Tensor,
    heads: int,
    window: list[int],
    offset: list[int],
    mask: torch.Tensor | None,
    q_gain: torch.Tensor | None,
    k_gain: torch.Tensor | None,
    eps: float | None,
    scale: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of qkv (contiguous) and of the gains of queries and keys ([2, head_dim], float32 or better, of no
    meaning where there is no such gain)."""
    args = (qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale)
    run = choose(FAMILY, backend, *args, True).run
    return run.backward(grad.contiguous(), out, lse, *args)


@_attention3d_backward.register_fake
def _(grad, out, lse, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, backend):
    gains = qkv.new_empty((2, qkv.shape[4] // (3 * heads)), dtype=lse.dtype)
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), gains


def _pairs(shape, window: Sequence[int], offset: Sequence[int]) -> int:
    """Number of (query, key) pairs of one sample and head."""
    along = [segments(n, w, o) for n, w, o in zip(shape[1:4], window, offset)]
    return shape[0] * math.prod(sum(count * width**2 for _, count, width in axis) for axis in along)


def _forward_flop(qkv_shape, heads, window, offset, *rest, out_shape=None, **kwargs) -> int:
    return 4 * _pairs(qkv_shape, window, offset) * (qkv_shape[4] // 3)


def _backward_flop(grad_shape, out, lse, qkv_shape, heads, window, offset, *rest, out_shape=None, **kwargs) -> int:
    return 10 * _pairs(qkv_shape, window, offset) * (qkv_shape[4] // 3)


# For torch.utils.flop_counter.FlopCounterMode(custom_mapping=FLOP). Not registered here: importing that module imports
# Triton, which asking for an operator must not.
FLOP = {
    torch.ops.mrisr.attention3d: _forward_flop,
    torch.ops.mrisr.attention3d_backward: _backward_flop,
}
