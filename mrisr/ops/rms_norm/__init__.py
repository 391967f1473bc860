"""RMS normalisation of each voxel's channels + FiLM + SiLU over 5D maps, in one pass: the student's norm.

y = act(x * rsqrt(mean_c x^2 + eps) * (1 + scale) + shift): the channels of each voxel by their root mean square
(RMSNorm, Zhang and Sennrich 2019, over channels). No statistics across voxels, so tiles are exact by construction.
"""

from __future__ import annotations

import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import choose
from mrisr.ops._layout import as_layout, check_out, dense, work_dtype
from mrisr.ops._library import custom_op
from mrisr.ops.rms_norm.backends import FAMILY
from mrisr.ops.rms_norm.reference import EPS, plain, reference

__all__ = ["EPS", "plain", "reference", "rms_norm"]


def rms_norm(
    x: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    act: str | None = None,
    eps: float = EPS,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Divide each voxel's channels by their root mean square; FiLM and SiLU in the same pass.

    Args:
        x: [N, C, D, H, W], contiguous or channels-last (any other layout is copied).
        scale, shift: [N, C], FiLM; any floating dtype.
        act: "silu" or None.
        out: where the result goes, of x's shape and dtype, dense; may be x itself. Only where no gradient is needed.

    Returns:
        As x, same memory format. Arithmetic is float32 or better (float64 for float64 input). A converter that traces
        (torch.jit.trace: OpenVINO) sees plain PyTorch instead of the operator.

    Raises:
        UsageError: sizes do not fit, or `out` with gradients. BackendError: `backend` was asked for and cannot run.
    """
    if torch.jit.is_tracing():
        return plain(x, scale, shift, act=act, eps=eps)
    _check(x, scale, shift, act, eps)
    if out is None:
        return _rms_norm(dense(x), scale, shift, act or "none", eps, backend or "")
    check_out("rms_norm", out, x, (x, scale, shift))
    _rms_norm_out(out, as_layout(x, out), scale, shift, act or "none", eps, backend or "")
    return out


def _check(x, scale, shift, act, eps) -> None:
    shape = tuple(x.shape)
    if x.ndim != 5 or not x.is_floating_point() or shape[1] == 0:
        raise UsageError(f"rms_norm: x must be floating point [N, C, D, H, W], C >= 1; it is {x.dtype} {shape}")
    if act not in (None, "none", "silu"):
        raise UsageError(f"rms_norm: act must be 'silu' or None; it is {act!r}")
    if not eps > 0:
        raise UsageError(f"rms_norm: eps must be positive; it is {eps}")
    for name, t in (("scale", scale), ("shift", shift)):
        if t is None:
            continue
        if tuple(t.shape) != shape[:2] or not t.is_floating_point():
            raise UsageError(
                f"rms_norm: {name} must be floating point {list(shape[:2])}; it is {t.dtype} {list(t.shape)}, "
                f"x.shape={shape}"
            )
        if t.device != x.device:
            raise UsageError(f"rms_norm: {name} is on {t.device}, x on {x.device}; move one to the other")


@custom_op("mrisr::rms_norm", mutates_args=())
def _rms_norm(
    x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, act: str, eps: float, backend: str
) -> torch.Tensor:
    y = torch.empty_like(x)
    choose(FAMILY, backend, x, scale, shift).run.forward(y, x, scale, shift, act, eps)
    return y


@_rms_norm.register_fake
def _(x, scale, shift, act, eps, backend):
    return torch.empty_like(x)


@custom_op("mrisr::rms_norm_out", mutates_args=("out",))
def _rms_norm_out(
    out: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    act: str,
    eps: float,
    backend: str,
) -> None:
    choose(FAMILY, backend, x, scale, shift).run.forward(out, x, scale, shift, act, eps)


@_rms_norm_out.register_fake
def _(out, x, scale, shift, act, eps, backend):
    return None


def _save(ctx, inputs, output) -> None:
    x, scale, shift, ctx.act, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(x, scale, shift)


def _backward(ctx, grad):
    x, scale, shift = ctx.saved_tensors
    dx, d_scale, d_shift = _rms_norm_backward(grad, x, scale, shift, ctx.act, ctx.eps, ctx.backend)
    d_scale = None if scale is None else d_scale.to(scale.dtype)
    return dx, d_scale, None if shift is None else d_shift.to(shift.dtype), None, None, None


_rms_norm.register_autograd(_backward, setup_context=_save)


@custom_op("mrisr::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    act: str,
    eps: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, d scale, d shift), the last two [N, C] in float32 or better. Sums run in fixed order, slabs joined in
    float64."""
    run = choose(FAMILY, backend, x, scale, shift).run
    dx, sums = run.backward(as_layout(grad, x), x, scale, shift, act, eps)
    work = work_dtype(x.dtype)
    d_shift, d_scale = (t.clone() for t in sums.sum(1).to(work).unbind(-1))
    return dx, d_scale, d_shift


@_rms_norm_backward.register_fake
def _(grad, x, scale, shift, act, eps, backend):
    line = x.new_empty(x.shape[:2], dtype=work_dtype(x.dtype))
    return torch.empty_like(x), line, torch.empty_like(line)
