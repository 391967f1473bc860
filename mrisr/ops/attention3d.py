"""Softmax attention over a 3D grid of tokens, everywhere or in windows, with query/key normalisation in the same pass.

    y_i = sum_j softmax_j(scale * q_i . k_j) v_j,   j over the active tokens of i's window

Windows are boxes of the *volume's* grid: a part of a volume, with its origin stated, has the same windows. At the edges
of the volume they are cut, not padded. Packed queries, keys and values are read where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import choose
from mrisr.ops._library import custom_op
from mrisr.ops._spec import Spec
from mrisr.ops.attention3d_backends import FAMILY, Reference, segments
from mrisr.ops.attention3d_onnx import to_onnx

MAX_WINDOW = 2**20  # a window larger than any volume is the same as none, and indices stay small


def attention3d(
    qkv: torch.Tensor,
    heads: int,
    *,
    window: int | None = 8,
    shift: int | Sequence[int] = 0,
    origin: Sequence[int] = (0, 0, 0),
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
        shift: windows start this many tokens before the volume's origin, one number or one per axis.
        origin: index, in the volume, of the first token of `qkv`, where that is a part of the volume.
        mask: [N, D, H, W] bool or uint8: tokens that are keys. The others' keys and values are not looked at, NaN or
            not; their queries are answered. Where a window has no key the result is 0.
        norm_eps: queries and keys are divided by sqrt(mean(x^2) + norm_eps) over the head_dim (RMS norm; Henry et al.
            2020, Dehghani et al. 2023); None: they are not.
        q_gain, k_gain: [head_dim], multiplied in after that normalisation.
        scale: of the logits; head_dim ** -0.5 unless given.

    Returns:
        [N, D, H, W, heads * head_dim], contiguous, dtype of `qkv`.

    Performance: Triton takes head_dim 32, 64 and 128; the native core any up to 512 (CPU); "sdpa" cuts windows out,
    calls PyTorch, and gives no gradients. On CUDA "sdpa" comes before Triton only for calls like those that it won in
    benchmarks/results/attention3d.json; with no such file Triton is first.

    Raises:
        UsageError: sizes do not fit. BackendError: `backend` was asked for and cannot run.
    """
    _check(qkv, heads, window, mask, norm_eps, q_gain, k_gain, scale)
    shift, origin = _triple(shift, "shift"), _triple(origin, "origin")
    if window is None:
        if any(shift):
            raise UsageError(f"attention3d: a shift needs windows; shift={shift}, window=None")
        box, offset = list(qkv.shape[1:4]), [0, 0, 0]
    else:
        box, offset = [window] * 3, [(o + s) % window for o, s in zip(origin, shift)]
    if scale is None:
        scale = (qkv.shape[-1] // (3 * heads)) ** -0.5
    if qkv.stride(-1) != 1:
        qkv = qkv.contiguous()
    mask = None if mask is None else mask.to(torch.uint8).contiguous()
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (qkv, q_gain, k_gain))
    return _attention3d(qkv, heads, box, offset, mask, q_gain, k_gain, norm_eps, float(scale), save, backend or "")[0]


def _triple(values: int | Sequence[int], name: str) -> list[int]:
    triple = [values] * 3 if isinstance(values, int) else [int(v) for v in values]
    if len(triple) != 3:
        raise UsageError(f"attention3d: {name} must have three entries; it is {values!r}")
    return triple


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
    work = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return out, qkv.new_empty((*qkv.shape[:4], heads) if save else (0,), dtype=work)


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


def reference(
    qkv, heads, *, window=8, shift=0, origin=(0, 0, 0), mask=None, norm_eps=None, q_gain=None, k_gain=None, scale=None
):
    """The same function in plain PyTorch, differentiable by autograd; in float64 it is the oracle."""
    size = list(qkv.shape[1:4])
    shift = [shift] * 3 if isinstance(shift, int) else shift
    box = size if window is None else [window] * 3
    offset = [0] * 3 if window is None else [(o + s) % window for o, s in zip(origin, shift)]
    scale = (qkv.shape[-1] // (3 * heads)) ** -0.5 if scale is None else scale
    return Reference()(qkv, heads, box, offset, mask, q_gain, k_gain, norm_eps, scale, False)[0]


def _case(
    size,
    heads=2,
    head_dim=32,
    *,
    active=None,
    dead=False,
    norm=False,
    gains=False,
    loud=1.0,
    layout="packed",
    nan=None,
    **call,
):
    """A builder of arguments. active: share of tokens that are keys; dead: none in the first window. loud: factor of
    queries. layout: "packed", "cut" out of a larger volume, or "planes" (channels not innermost). nan: token
    whose key is not a number."""

    def build(generator: torch.Generator) -> dict:
        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        channels = 3 * heads * head_dim
        n, d, h, w = size
        if layout == "cut":
            qkv = draw(n, d + 2, h + 1, w + 3, channels)[:, 1 : d + 1, 1:, 2 : w + 2]
        elif layout == "planes":
            qkv = draw(n, channels, d, h, w).permute(0, 2, 3, 4, 1)
        else:
            qkv = draw(n, d, h, w, channels)
        qkv[..., : channels // 3] *= loud
        if nan is not None:
            qkv[(0, *nan, slice(channels // 3, 2 * channels // 3))] = float("nan")
        args = dict(qkv=qkv, heads=heads, **call)
        if active is not None:
            args["mask"] = torch.rand(n, d, h, w, generator=generator) < active
            if dead:
                args["mask"][(slice(None), *[slice(call["window"])] * 3)] = False
        if norm:
            args["norm_eps"] = 1e-5
        if gains:
            args.update(q_gain=1 + 0.2 * draw(head_dim), k_gain=1 + 0.2 * draw(head_dim))
        return args

    return build


SPEC = Spec(
    family=FAMILY,
    call=attention3d,
    reference=reference,
    cases={
        "global": _case((2, 3, 4, 5), window=None),
        "aligned": _case((1, 4, 8, 8), window=4),
        "shifted": _case((1, 3, 8, 2), heads=1, window=4, shift=2),
        "odd": _case((2, 5, 3, 7), heads=1, window=4, shift=(1, 0, 3)),
        "window_of_8": _case((1, 9, 8, 5), heads=1, shift=4),
        "part_of_a_volume": _case((1, 5, 4, 3), heads=1, window=4, shift=2, origin=(3, -5, 1_000_001)),
        "tiny_windows": _case((1, 3, 1, 2), window=1),
        "one_voxel": _case((1, 1, 1, 1)),
        "empty": _case((0, 4, 4, 4)),
        "masked": _case((2, 5, 6, 4), window=4, active=0.4),
        "masked_global": _case((2, 3, 5, 6), window=None, active=0.5, norm=True),
        "window_with_nothing_active": _case((1, 4, 8, 4), window=4, active=0.6, dead=True),
        "normalised": _case((1, 4, 5, 4), window=4, norm=True),
        "gains": _case((1, 6, 4, 3), window=4, norm=True, gains=True, scale=0.25),
        "cut": _case((2, 4, 3, 5), window=4, layout="cut", gains=True, norm=True),
        "channels_outermost": _case((1, 4, 3, 5), window=4, layout="planes"),
        "large_logits": _case((1, 2, 4, 6), window=4, loud=30.0),
        "not_a_number": _case((1, 4, 4, 8), window=4, nan=(1, 2, 3)),
        "head_dim_64": _case((1, 4, 4, 5), heads=1, head_dim=64, window=4, active=0.8),
        "head_dim_128": _case((1, 3, 4, 5), heads=2, head_dim=128, window=4, norm=True),
        "head_dim_24": _case((1, 3, 4, 5), heads=2, head_dim=24, window=4, gains=True, norm=True),
    },
    tolerance={torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    gradients=("qkv", "q_gain", "k_gain"),
    onnx=to_onnx,
)
