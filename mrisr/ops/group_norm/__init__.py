"""Group normalisation + FiLM + SiLU over 5D maps, with statistics over the active voxels only.

y = act((xhat * weight + bias) * (1 + scale) + shift),  xhat = (x - mean) * rstd per sample and group.

Three separable pieces, so that whole volumes, tiles and distributed parts share them: `stats` (count, mean
and sum of squared deviations per slab), `merge` (Chan's formula, float64) and `apply` (y = act(a (x - m) +
b)). m is not folded into b: where the mean is large (1e4, std 1), a*x + b would lose three digits in float32.
"""

from __future__ import annotations

import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import choose
from mrisr.ops._layout import as_layout, check_out, dense, work_dtype
from mrisr.ops._library import custom_op
from mrisr.ops.group_norm.backends import FAMILY
from mrisr.ops.group_norm.reference import fold, merge, reference

__all__ = ["apply", "fold", "group_norm", "merge", "reference", "stats"]

_ACTS = ("none", "silu")


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    act: str | None = None,
    eps: float = 1e-5,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Group norm with FiLM and SiLU in one operator.

    Args:
        x: [N, C, D, H, W], contiguous or channels-last (any other layout is copied).
        groups: divides C.
        weight, bias: [C].
        scale, shift: [N, C], FiLM.
        mask: [N, 1, D, H, W] bool or uint8, the voxels that statistics run over; all are normalised. A
            sample with no active voxel keeps mean 0, rstd 1.
        act: "silu" or None.
        out: where the result goes, of x's shape, dtype and layout; may be x itself. Only where no gradient is needed.

    Returns:
        As x, same memory format. Statistics and arithmetic are float32 or better (float64 for float64 input).

    Raises:
        UsageError: sizes do not fit. BackendError: `backend` was asked for and cannot run.
    """
    _check(x, groups, weight, bias, scale, shift, mask, act, eps)
    mask = None if mask is None else mask.to(torch.uint8).contiguous()
    args = (groups, weight, bias, scale, shift, mask, act or "none", eps, backend or "")
    if out is None:
        return _group_norm(dense(x), *args)[0]
    check_out("group_norm", out, x, (x, weight, bias, scale, shift))
    _group_norm_out(out, as_layout(x, out), *args)
    return out


def stats(
    x: torch.Tensor, groups: int, mask: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """Partial statistics of x [N, C, D, H, W]: float64 [N, slabs, groups, 3] = count, mean, sum of squared
    deviations.

    Partials of several parts of a volume are joined along the slab axis and given to `merge`.
    """
    _check(x, groups, None, None, None, None, mask, None, 1e-5)
    mask = None if mask is None else mask.to(torch.uint8).contiguous()
    x = dense(x)
    return choose(FAMILY, backend, x, groups, None, None, None, None, mask).run.stats(x, groups, mask)


def apply(
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    act: str | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Normalise (a part of) a volume by given statistics, [N, groups] each, as `merge` returns them. Not
    differentiable."""
    groups = mean.shape[1]
    _check(x, groups, weight, bias, scale, shift, None, act, 1e-5)
    x = dense(x)
    folded = fold(mean, rstd, weight, bias, scale, shift, x.shape[1])
    run = choose(FAMILY, backend, x, groups, weight, bias, scale, shift, None).run
    y = torch.empty_like(x)
    run.apply(y, x, folded, act or "none")
    return y


def _check(x, groups, weight, bias, scale, shift, mask, act, eps) -> None:
    shape = tuple(x.shape)
    if x.ndim != 5 or not x.is_floating_point():
        raise UsageError(f"group_norm: x must be floating point [N, C, D, H, W]; it is {x.dtype} {shape}")
    n, c = shape[:2]
    if groups < 1 or c % groups:
        raise UsageError(f"group_norm: channels ({c}) must be divisible by groups ({groups}); x.shape={shape}")
    if act not in (None, *_ACTS):
        raise UsageError(f"group_norm: act must be 'silu' or None; it is {act!r}")
    if not eps > 0:
        raise UsageError(f"group_norm: eps must be positive; it is {eps}")
    expected = {"weight": (c,), "bias": (c,), "scale": (n, c), "shift": (n, c), "mask": (n, 1, *shape[2:])}
    tensors = {"weight": weight, "bias": bias, "scale": scale, "shift": shift, "mask": mask}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != expected[name]:
            raise UsageError(
                f"group_norm: {name} must be {list(expected[name])}; it is {list(tensor.shape)}, x.shape={shape}"
            )
        if tensor.device != x.device:
            raise UsageError(f"group_norm: {name} is on {tensor.device}, x on {x.device}; move one to the other")
    if mask is not None and mask.dtype not in (torch.bool, torch.uint8):
        raise UsageError(f"group_norm: mask must be bool or uint8; it is {mask.dtype}")


@custom_op("mrisr::group_norm", mutates_args=())
def _group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    mask: torch.Tensor | None,
    act: str,
    eps: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    run = choose(FAMILY, backend, x, groups, weight, bias, scale, shift, mask).run
    partials = run.stats(x, groups, mask)
    return run.finish(torch.empty_like(x), x, partials, groups, weight, bias, scale, shift, act, eps)


@_group_norm.register_fake
def _(x, groups, weight, bias, scale, shift, mask, act, eps, backend):
    statistics = x.new_empty((x.shape[0], groups), dtype=torch.float64)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@custom_op("mrisr::group_norm_out", mutates_args=("out",))
def _group_norm_out(
    out: torch.Tensor,
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    mask: torch.Tensor | None,
    act: str,
    eps: float,
    backend: str,
) -> None:
    run = choose(FAMILY, backend, x, groups, weight, bias, scale, shift, mask).run
    run.finish(out, x, run.stats(x, groups, mask), groups, weight, bias, scale, shift, act, eps)


@_group_norm_out.register_fake
def _(out, x, groups, weight, bias, scale, shift, mask, act, eps, backend):
    return None


def _save(ctx, inputs, output) -> None:
    x, ctx.groups, weight, bias, scale, shift, mask, ctx.act, _, ctx.backend = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, mean, rstd, weight, bias, scale, shift, mask)
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx, grad, _mean, _rstd):
    x, mean, rstd, weight, bias, scale, shift, mask = ctx.saved_tensors
    dx, d_gain, d_offset = _group_norm_backward(
        grad, x, mean, rstd, weight, bias, scale, shift, mask, ctx.act, ctx.backend
    )
    # z = gain * xhat + offset with gain = weight (1 + scale), offset = bias (1 + scale) + shift, all [N, C].
    one = 1.0 if scale is None else 1.0 + scale
    d_weight = None if weight is None else (d_gain * one).sum(0).to(weight.dtype)
    d_bias = None if bias is None else (d_offset * one).sum(0).to(bias.dtype)
    d_scale = None
    if scale is not None:
        d_scale = d_gain * (1.0 if weight is None else weight) + d_offset * (0.0 if bias is None else bias)
        d_scale = d_scale.to(scale.dtype)
    d_shift = None if shift is None else d_offset.to(shift.dtype)
    return dx, None, d_weight, d_bias, d_scale, d_shift, None, None, None, None


_group_norm.register_autograd(_backward, setup_context=_save)


@custom_op("mrisr::group_norm_backward", mutates_args=())
def _group_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    mask: torch.Tensor | None,
    act: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, and the gradients of gain and offset ([N, C], float32 or better): sums over voxels, their merge in
    float64, and one elementwise pass."""
    groups = mean.shape[1]
    run = choose(FAMILY, backend, x, groups, weight, bias, scale, shift, mask).run
    grad = as_layout(grad, x)
    folded = fold(mean, rstd, weight, bias, scale, shift, x.shape[1])
    sums = run.backward_sums(grad, x, folded, act).sum(1)
    gain = fold(torch.zeros_like(mean), torch.ones_like(rstd), weight, None, scale, None, x.shape[1])[0]
    d_gain, d_offset, through = through_statistics(sums, mean, rstd, gain.expand(x.shape[:2]), _count(x, mask))
    work = work_dtype(x.dtype)
    dx = run.backward_apply(grad, x, folded, through, mask, act)
    return dx, d_gain.to(work), d_offset.to(work)


@_group_norm_backward.register_fake
def _(grad, x, mean, rstd, weight, bias, scale, shift, mask, act, backend):
    work = work_dtype(x.dtype)
    gain = x.new_empty(x.shape[:2], dtype=work)
    return torch.empty_like(x), gain, torch.empty_like(gain)


def _count(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Active voxels per sample: float64 [N, 1], at least 1."""
    if mask is None:
        voxels = x.shape[2] * x.shape[3] * x.shape[4]
        return torch.full((x.shape[0], 1), float(max(1, voxels)), dtype=torch.float64, device=x.device)
    return (mask != 0).sum((2, 3, 4)).double().clamp(min=1)


def through_statistics(sums, mean, rstd, gain, count):
    """What the sums of the backward pass come to, all float64 [N, C].

    Args:
        sums: [N, C, 2], sum of dz and sum of dz (x - m), with m the mean rounded to float32.
        gain: [N, C], weight (1 + scale). count: [N, 1], voxels behind the statistics.

    Returns:
        (d gain, d offset, (p, u, v)): dx = p dz - (u + v (x - m)) where a voxel is active, p dz elsewhere.
    """
    channels, groups = sums.shape[1], mean.shape[1]
    per_group = channels // groups
    rest = (mean - mean.float().double()).repeat_interleave(per_group, dim=1)
    r = rstd.repeat_interleave(per_group, dim=1)
    d_offset = sums[..., 0]
    d_gain = r * (sums[..., 1] - rest * d_offset)

    def over_group(t: torch.Tensor) -> torch.Tensor:
        total = (gain * t).reshape(len(t), groups, per_group).sum(-1)
        return (total / (count * per_group)).repeat_interleave(per_group, dim=1)

    v = over_group(d_gain) * r * r
    return d_gain, d_offset, (gain * r, over_group(d_offset) * r - v * rest, v)
