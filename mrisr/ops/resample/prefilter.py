"""B-spline coefficients of a volume: what `resample3d` samples.

Along each axis the spline that runs through the samples is found exactly, both ends included (Unser, Aldroubi and
Eden, IEEE TSP 41, 1993), and its coefficients are continued past both ends, so that a sampler reads them without
asking where the axis ends. The native backend runs one causal and one anticausal recursion per pole; the reference
multiplies by the inverse of the interpolation matrix, which is also the quicker way on a GPU.
"""

from __future__ import annotations

from math import prod

import torch

from mrisr.errors import UsageError
from mrisr.ops._core import CPU
from mrisr.ops._dispatch import Backend, Family, choose, reference_backend
from mrisr.ops._layout import FLOATS, takes
from mrisr.ops._library import custom_op
from mrisr.ops.resample.axes import reference as product
from mrisr.ops.resample.matrices import BOUNDARIES, check_spline, coefficient_matrix


def halo(order: int) -> int:
    """Coefficients kept past each end of an axis."""
    return (order + 1) // 2


def prefilter(x: torch.Tensor, order: int = 5, boundary: str = "linear", *, backend: str | None = None):
    """B-spline coefficients of `x` over its last three axes.

    Args:
        x: [..., X, Y, Z], floating point.
        order: 1, 3 or 5.
        boundary: how samples go on past the ends. "linear": c(-k) = 2 c(0) - c(k), a straight line stays straight.
            "mirror": c(-k) = c(k) (`scipy.ndimage`'s "mirror").

    Returns:
        [..., X + 2h, Y + 2h, Z + 2h] with h = (order + 1) / 2, dtype of `x`; entry h is the coefficient of sample 0.
        Differentiable in `x`. NaN in a sample reaches the whole volume, as the filter's tails do, and with order 1
        only what is continued from it.

    Raises:
        UsageError: unknown order or boundary, no voxels along an axis. BackendError: `backend` cannot run.
    """
    check_spline(order, boundary, "prefilter")
    if x.ndim < 3 or not x.is_floating_point() or 0 in x.shape[-3:]:
        raise UsageError(
            f"prefilter: x must be floating point [..., X, Y, Z] with voxels in it; it is {x.dtype} {tuple(x.shape)}"
        )
    return _prefilter(x, order, boundary, backend or "")


@custom_op("mrisr::prefilter", mutates_args=())
def _prefilter(x: torch.Tensor, order: int, boundary: str, backend: str) -> torch.Tensor:
    return choose(FAMILY, backend, x, order, boundary, False).run(x, order, boundary, False)


@custom_op("mrisr::prefilter_adjoint", mutates_args=())
def _prefilter_adjoint(grad: torch.Tensor, order: int, boundary: str, backend: str) -> torch.Tensor:
    return choose(FAMILY, backend, grad, order, boundary, True).run(grad, order, boundary, True)


def _resized(x: torch.Tensor, by: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-3], *(n + by for n in x.shape[-3:])))


@_prefilter.register_fake
def _(x, order, boundary, backend):
    return _resized(x, 2 * halo(order))


@_prefilter_adjoint.register_fake
def _(grad, order, boundary, backend):
    return _resized(grad, -2 * halo(order))


def _save(ctx, inputs, output) -> None:
    _, *ctx.options = inputs


_prefilter.register_autograd(
    lambda ctx, grad: (_prefilter_adjoint(grad, *ctx.options), None, None, None), setup_context=_save
)
_prefilter_adjoint.register_autograd(
    lambda ctx, grad: (_prefilter(grad, *ctx.options), None, None, None), setup_context=_save
)


def reference(x: torch.Tensor, order: int, boundary: str, adjoint: bool = False) -> torch.Tensor:
    """Inverse matrix, then continuation, per axis; or their transposes in reverse."""
    work = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    y, odd = x.to(work), boundary == "linear"
    for axis in range(3):
        if adjoint:
            y = _continued_adjoint(y, axis - 3, halo(order), odd)
        if order > 1:
            matrix = coefficient_matrix(y.shape[axis - 3], order, boundary)
            y = product(y, matrix.T if adjoint else matrix, axis)
        if not adjoint:
            y = _continued(y, axis - 3, halo(order), odd)
    return y.to(x.dtype).contiguous()


def _continued(c: torch.Tensor, axis: int, places: int, odd: bool) -> torch.Tensor:
    """`places` more coefficients past both ends. Outwards by turns: each reads one that is already there."""
    n = c.shape[axis]
    parts = dict(enumerate(c.split(1, axis)))
    first, last = parts[0], parts[n - 1]
    for k in range(1, places + 1):
        if n == 1:
            parts[-k] = parts[k] = first
        else:
            parts[-k] = 2 * first - parts[k] if odd else parts[k]
            parts[n - 1 + k] = 2 * last - parts[n - 1 - k] if odd else parts[n - 1 - k]
    low = [parts[k] for k in range(-places, 0)]
    return torch.cat([*low, c, *(parts[n - 1 + k] for k in range(1, places + 1))], axis)


def _continued_adjoint(grad: torch.Tensor, axis: int, places: int, odd: bool) -> torch.Tensor:
    n = grad.shape[axis] - 2 * places
    parts = dict(zip(range(-places, n + places), grad.split(1, axis)))
    for k in range(places, 0, -1):
        for outer, inner, end in ((n - 1 + k, n - 1 - k, n - 1), (-k, k, 0)):
            if n == 1:
                parts[0] = parts[0] + parts[outer]
            elif odd:
                parts[end] = parts[end] + 2 * parts[outer]
                parts[inner] = parts[inner] - parts[outer]
            else:
                parts[inner] = parts[inner] + parts[outer]
    return torch.cat([parts[k] for k in range(n)], axis)


def _run_native(x: torch.Tensor, order: int, boundary: str, adjoint: bool) -> torch.Tensor:
    kind = "prefilter_f64" if x.dtype == torch.float64 else "prefilter_f32"
    x, width = x.contiguous(), 2 * halo(order)
    out = _resized(x, -width if adjoint else width)
    samples = list((out if adjoint else x).shape[-3:])
    CPU(kind, x.device, out, x, prod(x.shape[:-3]), samples, order, BOUNDARIES.index(boundary), adjoint)
    return out


FAMILY = Family(
    "prefilter",
    (
        Backend("native", _run_native, CPU.reason, takes("cpu", FLOATS)),
        reference_backend(reference),
    ),
)
