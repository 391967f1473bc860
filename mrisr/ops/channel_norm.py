"""Channel normalisation + FiLM + SiLU over 5D maps: the student's norm, its whole pointwise chain in one pass.

y = act(x * rsqrt(mean_c x^2 + eps) * (1 + scale) + shift): the channels of each voxel by their root mean square
(RMSNorm, Zhang and Sennrich 2019, over channels). No statistics across voxels, so tiles are exact by construction.
"""

from __future__ import annotations

import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import Family, choose
from mrisr.ops._library import custom_op
from mrisr.ops._spec import Spec
from mrisr.ops.channel_norm_cases import CASES
from mrisr.ops.group_norm import as_layout, check_out, dense

EPS = 1e-4


def channel_norm(
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
        return _channel_norm(dense(x), scale, shift, act or "none", eps, backend or "")
    check_out("channel_norm", out, x, (x, scale, shift))
    _channel_norm_out(out, as_layout(x, out), scale, shift, act or "none", eps, backend or "")
    return out


def plain(x, scale=None, shift=None, *, act=None, eps: float = EPS) -> torch.Tensor:
    """The formula in PyTorch's own operators, in x's dtype."""
    y = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    if scale is not None:
        y = y * (1 + scale)[:, :, None, None, None]
    if shift is not None:
        y = y + shift[:, :, None, None, None]
    return torch.nn.functional.silu(y) if act == "silu" else y


def reference(x, scale=None, shift=None, *, act=None, eps: float = EPS) -> torch.Tensor:
    """`plain` in float32 or better, rounded once; in float64 it is the oracle."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    film = [None if t is None else t.to(work) for t in (scale, shift)]
    return plain(x.to(work), *film, act=act, eps=eps).to(x.dtype)


def _check(x, scale, shift, act, eps) -> None:
    shape = tuple(x.shape)
    if x.ndim != 5 or not x.is_floating_point() or shape[1] == 0:
        raise UsageError(f"channel_norm: x must be floating point [N, C, D, H, W], C >= 1; it is {x.dtype} {shape}")
    if act not in (None, "none", "silu"):
        raise UsageError(f"channel_norm: act must be 'silu' or None; it is {act!r}")
    if not eps > 0:
        raise UsageError(f"channel_norm: eps must be positive; it is {eps}")
    for name, t in (("scale", scale), ("shift", shift)):
        if t is None:
            continue
        if tuple(t.shape) != shape[:2] or not t.is_floating_point():
            raise UsageError(
                f"channel_norm: {name} must be floating point {list(shape[:2])}; it is {t.dtype} {list(t.shape)}, "
                f"x.shape={shape}"
            )
        if t.device != x.device:
            raise UsageError(f"channel_norm: {name} is on {t.device}, x on {x.device}; move one to the other")


@custom_op("mrisr::channel_norm", mutates_args=())
def _channel_norm(
    x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, act: str, eps: float, backend: str
) -> torch.Tensor:
    y = torch.empty_like(x)
    choose(FAMILY, backend, x, scale, shift).run.forward(y, x, scale, shift, act, eps)
    return y


@_channel_norm.register_fake
def _(x, scale, shift, act, eps, backend):
    return torch.empty_like(x)


@custom_op("mrisr::channel_norm_out", mutates_args=("out",))
def _channel_norm_out(
    out: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    act: str,
    eps: float,
    backend: str,
) -> None:
    choose(FAMILY, backend, x, scale, shift).run.forward(out, x, scale, shift, act, eps)


@_channel_norm_out.register_fake
def _(out, x, scale, shift, act, eps, backend):
    return None


def _save(ctx, inputs, output) -> None:
    x, scale, shift, ctx.act, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(x, scale, shift)


def _backward(ctx, grad):
    x, scale, shift = ctx.saved_tensors
    dx, d_scale, d_shift = _channel_norm_backward(grad, x, scale, shift, ctx.act, ctx.eps, ctx.backend)
    d_scale = None if scale is None else d_scale.to(scale.dtype)
    return dx, d_scale, None if shift is None else d_shift.to(shift.dtype), None, None, None


_channel_norm.register_autograd(_backward, setup_context=_save)


@custom_op("mrisr::channel_norm_backward", mutates_args=())
def _channel_norm_backward(
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
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    d_shift, d_scale = (t.clone() for t in sums.sum(1).to(work).unbind(-1))
    return dx, d_scale, d_shift


@_channel_norm_backward.register_fake
def _(grad, x, scale, shift, act, eps, backend):
    line = x.new_empty(x.shape[:2], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return torch.empty_like(x), line, torch.empty_like(line)


def to_onnx(x, scale=None, shift=None, act="none", eps=EPS, backend=""):
    """The operator in ONNX's own, for `torch.onnx.export(custom_translation_table=...)`."""
    from onnxscript import opset18 as op

    y = op.ReduceMean(op.Mul(x, x), op.Constant(value_ints=[1]), keepdims=1)
    y = op.Div(x, op.Sqrt(op.Add(y, op.CastLike(op.Constant(value_float=eps), x))))
    axes = op.Constant(value_ints=[2, 3, 4])
    if scale is not None:
        y = op.Mul(y, op.Unsqueeze(op.Add(scale, op.CastLike(op.Constant(value_float=1.0), scale)), axes))
    if shift is not None:
        y = op.Add(y, op.Unsqueeze(shift, axes))
    return op.Mul(y, op.Sigmoid(y)) if act == "silu" else y


def _family() -> Family:
    from mrisr.ops import channel_norm_backends as found

    return Family("channel_norm", found.BACKENDS)


FAMILY = _family()

SPEC = Spec(
    family=FAMILY,
    call=channel_norm,
    reference=reference,
    cases=CASES,
    tolerance={torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    gradients=("x", "scale", "shift"),
    onnx=to_onnx,
)
