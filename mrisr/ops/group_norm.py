"""Group normalisation + FiLM + SiLU over 5D maps, with statistics over the active voxels only.

y = act((xhat * weight + bias) * (1 + scale) + shift),  xhat = (x - mean) * rstd per sample and group.

Three separable pieces, so that whole volumes, tiles and distributed parts share them: `stats` (count, mean
and sum of squared deviations per slab), `merge` (Chan's formula, float64) and `apply` (y = act(a (x - m) +
b)). m is not folded into b: where the mean is large (1e4, std 1), a*x + b would lose three digits in float32.
"""

from __future__ import annotations

import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import Family, choose
from mrisr.ops._spec import Spec

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

    Returns:
        As x, same memory format. Statistics and arithmetic are float32 or better (float64 for float64 input).

    Raises:
        UsageError: sizes do not fit. BackendError: `backend` was asked for and cannot run.
    """
    _check(x, groups, weight, bias, scale, shift, mask, act, eps)
    mask = None if mask is None else mask.to(torch.uint8).contiguous()
    args = (_dense(x), groups, weight, bias, scale, shift, mask, act or "none", eps)
    return _group_norm(*args, backend or "")[0]


def stats(
    x: torch.Tensor, groups: int, mask: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """Partial statistics of x [N, C, D, H, W]: float64 [N, slabs, groups, 3] = count, mean, sum of squared
    deviations.

    Partials of several parts of a volume are joined along the slab axis and given to `merge`.
    """
    _check(x, groups, None, None, None, None, mask, None, 1e-5)
    mask = None if mask is None else mask.to(torch.uint8).contiguous()
    x = _dense(x)
    return choose(FAMILY, backend, x, groups, None, None, None, None, mask).run.stats(x, groups, mask)


def merge(partials: torch.Tensor, eps: float = 1e-5) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, rstd), float64 [N, groups], of partials [N, slabs, groups, 3], in fixed order."""
    n, mean, m2 = partials.unbind(-1)
    total = n.sum(1)
    safe = total.clamp(min=1)
    part = torch.where(n > 0, mean, 0.0)  # an empty slab has no mean
    joined = (n * part).sum(1) / safe
    variance = (torch.where(n > 0, m2, 0.0) + n * (part - joined[:, None]) ** 2).sum(1) / safe
    rstd = (variance + eps).rsqrt()
    return joined, torch.where(total > 0, rstd, 1.0)


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
    x = _dense(x)
    folded = fold(mean, rstd, weight, bias, scale, shift, x.shape[1])
    run = choose(FAMILY, backend, x, groups, weight, bias, scale, shift, None).run
    return run.apply(x, folded, act or "none")


def fold(mean, rstd, weight, bias, scale, shift, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(a, b, m), float64 [N, C]: y = act(a (x - m) + b); m is the mean rounded to float32, b holds the
    rest."""
    per_group = channels // mean.shape[1]
    mean, rstd = (t.double().repeat_interleave(per_group, dim=1) for t in (mean, rstd))
    gain = 1.0 if scale is None else 1.0 + scale.double()
    a = rstd * gain * (1.0 if weight is None else weight.double())
    m = mean.float().double()
    b = (0.0 if bias is None else bias.double()) * gain + (0.0 if shift is None else shift.double()) - (mean - m) * a
    return a, b, m


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
    found = {"weight": weight, "bias": bias, "scale": scale, "shift": shift, "mask": mask}
    for name, tensor in found.items():
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


def _dense(x: torch.Tensor) -> torch.Tensor:
    """x itself where it is dense in one of the two layouts, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def is_channels_last(x: torch.Tensor) -> bool:
    """Memory is [N, D, H, W, C] and not [N, C, D, H, W] as well."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)


@torch.library.custom_op("mrisr::group_norm", mutates_args=())
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
    args = (x, groups, weight, bias, scale, shift, mask)
    return choose(FAMILY, backend, *args).run(*args, act, eps)


@_group_norm.register_fake
def _(x, groups, weight, bias, scale, shift, mask, act, eps, backend):
    statistics = x.new_empty((x.shape[0], groups), dtype=torch.float64)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _save(ctx, inputs, output) -> None:
    x, ctx.groups, weight, bias, scale, shift, mask, ctx.act, _, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, mean, rstd, weight, bias, scale, shift, mask)
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx, grad, _mean, _rstd):
    x, mean, rstd, weight, bias, scale, shift, mask = ctx.saved_tensors
    dx, d_gain, d_offset = _group_norm_backward(grad, x, mean, rstd, weight, bias, scale, shift, mask, ctx.act)
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


@torch.library.custom_op("mrisr::group_norm_backward", mutates_args=())
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, and the gradients of gain and offset ([N, C], float32 or better), from two reductions over
    voxels."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    n, c = x.shape[:2]
    groups = mean.shape[1]

    def per_channel(t: torch.Tensor) -> torch.Tensor:
        return t.to(work).reshape(n, c, 1, 1, 1)

    gain = (1.0 if scale is None else 1.0 + scale.double()) * (1.0 if weight is None else weight.double())
    gain = torch.as_tensor(gain, dtype=torch.float64, device=x.device).expand(n, c)
    a, b, m = fold(mean, rstd, weight, bias, scale, shift, c)
    centred = x.to(work) - per_channel(m)
    dz = grad.to(work)
    if act == "silu":
        z = per_channel(a) * centred + per_channel(b.expand(n, c))
        s = torch.sigmoid(z)
        dz = dz * s * (1 + z * (1 - s))
    rstd_c, rest = (t.repeat_interleave(c // groups, dim=1) for t in (rstd, mean - mean.float().double()))
    xhat = (centred - per_channel(rest)) * per_channel(rstd_c)
    d_offset = dz.sum((2, 3, 4), dtype=torch.float64)
    d_gain = (dz * xhat).sum((2, 3, 4), dtype=torch.float64)

    if mask is None:
        count = torch.full((n, 1), float(x[0, 0].numel()) if n else 0.0, dtype=torch.float64, device=x.device)
    else:
        count = (mask != 0).sum((2, 3, 4)).double()
    count = count.clamp(min=1) * (c // groups)

    def over_group(t: torch.Tensor) -> torch.Tensor:
        return ((gain * t).reshape(n, groups, -1).sum(-1) / count).repeat_interleave(c // groups, dim=1)

    through_statistics = per_channel(over_group(d_offset) * rstd_c) + xhat * per_channel(over_group(d_gain) * rstd_c)
    if mask is not None:
        through_statistics = torch.where(mask != 0, through_statistics, 0.0)
    dx = (dz * per_channel(gain * rstd_c) - through_statistics).to(x.dtype)
    return torch.empty_like(x).copy_(dx), d_gain.to(work), d_offset.to(work)


@_group_norm_backward.register_fake
def _(grad, x, mean, rstd, weight, bias, scale, shift, mask, act):
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    gain = x.new_empty(x.shape[:2], dtype=work)
    return torch.empty_like(x), gain, torch.empty_like(gain)


def reference(x, groups, weight=None, bias=None, *, scale=None, shift=None, mask=None, act=None, eps=1e-5):
    """The same function in plain PyTorch; in float64 it is the oracle."""
    from mrisr.ops.group_norm_backends import Reference

    mask = None if mask is None else mask.to(torch.uint8)
    return Reference()(x.contiguous(), groups, weight, bias, scale, shift, mask, act or "none", eps)[0]


def _backends() -> Family:
    from mrisr.ops import group_norm_backends as found

    return Family("group_norm", found.BACKENDS)


FAMILY = _backends()


def _case(
    shape,
    groups,
    *,
    affine=True,
    film=False,
    active=None,
    act="silu",
    mean=0.0,
    std=1.0,
    layout="first",
    fill=None,
):
    def build(generator: torch.Generator) -> dict:
        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        n, c = shape[:2]
        x = draw(*shape) * std + mean
        if fill is not None:
            x = torch.full(shape, fill, dtype=torch.float64)
        if layout == "last":
            x = x.contiguous(memory_format=torch.channels_last_3d)
        if layout == "strided":
            x = draw(*shape[:3], shape[4], shape[3]).transpose(3, 4)
        args = dict(x=x, groups=groups, act=act)
        if affine:
            args.update(weight=1 + 0.2 * draw(c), bias=0.3 * draw(c))
        if film:
            args.update(scale=0.2 * draw(n, c), shift=0.2 * draw(n, c))
        if active is not None:
            args["mask"] = torch.rand(n, 1, *shape[2:], generator=generator) < active
        return args

    return build


SPEC = Spec(
    family=FAMILY,
    call=group_norm,
    reference=reference,
    cases={
        "first": _case((2, 16, 5, 6, 7), 4),
        "last": _case((2, 16, 5, 6, 7), 4, layout="last"),
        "film": _case((2, 24, 4, 5, 6), 3, film=True, layout="last"),
        "plain": _case((1, 6, 3, 4, 5), 2, affine=False, act=None),
        "film_alone": _case((2, 8, 3, 4, 5), 2, affine=False, film=True, act=None),
        "masked_first": _case((2, 8, 6, 7, 9), 2, active=0.4, film=True),
        "masked_last": _case((2, 8, 6, 7, 9), 2, active=0.4, layout="last"),
        "nothing_active": _case((1, 4, 3, 3, 3), 2, active=0.0),
        "large_mean": _case((1, 16, 8, 9, 10), 4, mean=1e4),
        "large_mean_last": _case((1, 16, 8, 9, 10), 4, mean=1e4, layout="last"),
        "constant": _case((1, 8, 4, 4, 4), 2, fill=3.7, layout="last"),
        "one_voxel": _case((1, 8, 1, 1, 1), 2),
        "one_channel": _case((2, 1, 7, 8, 9), 1),
        "odd_channels": _case((1, 15, 5, 3, 11), 5, layout="last"),
        "instance": _case((1, 32, 4, 4, 4), 32, layout="last"),
        "several_slabs": _case((1, 4, 30, 34, 37), 2),
        "several_slabs_last": _case((1, 4, 30, 34, 37), 2, layout="last", active=0.9),
        "strided": _case((1, 8, 5, 6, 7), 2, layout="strided"),
    },
    tolerance={torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    gradients=("x", "weight", "bias", "scale", "shift"),
)
