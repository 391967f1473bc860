"""`resample3d`: the B-spline through a volume's samples at any positions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import asked_for, choose
from mrisr.ops._layout import work_dtype
from mrisr.ops._library import custom_op
from mrisr.ops.resample.axes import axis_apply
from mrisr.ops.resample.backends import FAMILY
from mrisr.ops.resample.jacobian import affine_rows, jacobian_determinant
from mrisr.ops.resample.matrices import Matrix, bspline_matrix, check_spline
from mrisr.ops.resample.prefilter import _prefilter_adjoint, prefilter
from mrisr.ops.resample.prefilter import reference as prefilter_reference
from mrisr.ops.resample.reference import Reference, Sampling

PARALLEL = 1e-9  # voxels that an entry off the diagonal may move a position by, for the axes to count as parallel


def resample3d(
    x: torch.Tensor,
    shape: Sequence[int],
    matrix,
    *,
    displacement: torch.Tensor | None = None,
    order: int = 5,
    boundary: str = "linear",
    modulate: bool | torch.Tensor = False,
    backend: str | None = None,
) -> torch.Tensor:
    """Sample `x` at  matrix (i, j, k, 1) + displacement(i, j, k)  for every voxel (i, j, k) of a target grid.

    Args:
        x: [..., X, Y, Z], floating point.
        shape: (X', Y', Z') of the target grid.
        matrix: [3, 4] or [4, 4], target voxel index -> source voxel index, used in float64: `centred_matrix` for two
            grids of one field of view, `inv(source.affine) @ target.affine` for any two `mrisr.grid.Grid`.
        displacement: [3, X', Y', Z'] or, where x is [N, C, X, Y, Z], [N, 3, X', Y', Z']; added to the positions, in
            source voxels along the source axes; in the dtype of the sampling (float64 for a float64 x, else float32).
        order: B-spline of order 1, 3 or 5, with prefilter.
        boundary: "linear": straight lines go on straight up to the edge of the field of view, half a voxel outside
            the last centre, and what lies further out has the value at that edge. "mirror": x is reflected at its
            outermost centres, over and over (`scipy.ndimage`'s "mirror").
        modulate: multiply by how much the displacement compresses or stretches the volume, so that the amount of signal
            is kept (Jovicich et al., NeuroImage 30, 2006): True takes |`jacobian_determinant`|, a tensor
            ([X', Y', Z'] or, with one displacement per volume, [N, X', Y', Z']) is a determinant known better.
        backend: who samples. The prefilter runs there too, except that beside "triton" it is PyTorch's product with
            one matrix per axis.

    Returns:
        [..., X', Y', Z'], dtype of `x`; half precision is sampled in float32. Differentiable in `x` (the adjoint, the
        prefilter's included) and `displacement` (the spline's own derivative; zero where a position is held at the
        edge; in float32 it is as uncertain as the samples, 1e-7 of the largest). A displacement that is NaN gives NaN
        in its voxel; NaN in x goes as far as `prefilter` carries it.

    Raises:
        UsageError: sizes, dtypes or devices do not fit. BackendError: `backend` was asked for and cannot run.

    Source: Unser, IEEE Signal Processing Magazine 16(6), 1999. Displacement and change of grid in one interpolation:
    Glasser et al., NeuroImage 80, 2013 (section on gradient-nonlinearity correction).
    """
    s = _sampling(x, shape, matrix, order, boundary)
    factor = None if modulate is False else _factor(x, displacement, modulate, s)
    out = _sampled(x, displacement, s, backend)
    return out if factor is None else (out * factor).to(x.dtype)


def resample3d_adjoint(
    grad: torch.Tensor,
    source: Sequence[int],
    matrix,
    *,
    order: int = 5,
    boundary: str = "linear",
    backend: str | None = None,
) -> torch.Tensor:
    """The transpose of `resample3d(., grad.shape, matrix)` without displacement: <resample3d(x), y> = <x, this(y)>.

    What autograd gives, without running `resample3d` first, and where gradients are switched off.

    Args:
        grad: [..., X', Y', Z'] on the target grid, floating point.
        source: (X, Y, Z) of the volume that `resample3d` would read.

    Returns:
        [..., X, Y, Z], dtype of `grad`; half precision is summed in float32.

    Raises:
        UsageError: sizes or dtypes do not fit. BackendError: `backend` was asked for and cannot run.
    """
    s = _sampling(grad.new_empty((1, 1, 1)).expand(tuple(source)), grad.shape[-3:], matrix, order, boundary)
    axes = _parallel_axes(s) if _separable(backend) else None
    if axes is not None:
        for axis, axis_matrix in enumerate(axes):
            grad = axis_apply(grad, axis_matrix.T, axis, backend=backend)
        return grad
    volumes = grad.to(work_dtype(grad.dtype)).reshape(1, _channels(grad, 1), *s.target)
    out = _adjoint(None, volumes, *_plain(s), backend or "")
    out = _prefilter_adjoint(out, s.order, s.boundary, "" if backend in (None, "triton") else backend)
    return out.reshape(*grad.shape[:-3], *s.source).to(grad.dtype)


def _sampled(x, displacement, s: Sampling, backend: str | None) -> torch.Tensor:
    work = work_dtype(x.dtype)
    displacement = None if displacement is None else _checked_displacement(x, displacement, s).to(work)
    axes = _parallel_axes(s) if displacement is None and _separable(backend) and x.numel() else None
    if axes is not None:
        for axis, axis_matrix in enumerate(axes):
            x = axis_apply(x, axis_matrix, axis, backend=backend)
        return x
    coefficients = prefilter(x.to(work), s.order, s.boundary, backend=None if backend == "triton" else backend)
    per_displacement = x.shape[0] if displacement is not None and x.ndim == 5 else 1
    volumes = coefficients.reshape(per_displacement, _channels(x, per_displacement), *s.padded)
    out = _resample3d(volumes, displacement, *_plain(s), backend or "")
    return out.reshape(*x.shape[:-3], *s.target).to(x.dtype)


def _factor(x, displacement, modulate, s: Sampling) -> torch.Tensor:
    """|det J|, to be multiplied with what was sampled from x."""
    if displacement is None:
        raise UsageError("resample3d: modulate needs a displacement; found none")
    field = _checked_displacement(x, displacement, s)
    if modulate is True:
        rows = [s.matrix[k : k + 4] for k in (0, 4, 8)]
        determinant = jacobian_determinant(rows, field.double() if x.dtype == torch.float64 else field.float())
    else:
        if modulate.shape[-3:] != s.target or tuple(modulate.shape[:-3]) not in ((), (field.shape[0],)):
            raise UsageError(
                f"resample3d: modulate must be {list(s.target)}, or one of these per displacement; "
                f"it is {list(modulate.shape)}"
            )
        determinant = modulate.reshape(-1, *s.target).to(x.device)
    # One per displacement: over the channels of its volume, or over everything.
    return determinant.abs()[:, None] if x.ndim == 5 else determinant.abs()[0]


def _channels(x: torch.Tensor, batch: int) -> int:
    return prod(x.shape[:-3]) // max(1, batch)


def _sampling(x, shape, matrix, order: int, boundary: str) -> Sampling:
    check_spline(order, boundary, "resample3d")
    if x.ndim < 3 or not x.is_floating_point() or 0 in x.shape[-3:]:
        raise UsageError(
            f"resample3d: x must be floating point [..., X, Y, Z] with voxels in it; it is {x.dtype} {tuple(x.shape)}"
        )
    target = tuple(int(n) for n in shape)
    if len(target) != 3 or min(target) < 0:
        raise UsageError(f"resample3d: shape must be three voxel counts; it is {tuple(shape)}")
    return Sampling(affine_rows(matrix, "resample3d"), tuple(x.shape[-3:]), target, order, boundary)


def _checked_displacement(x, displacement, s: Sampling) -> torch.Tensor:
    """[N or 1, 3, X', Y', Z']"""
    fits = displacement.ndim == 4 or (displacement.ndim == 5 and x.ndim == 5)
    if displacement.ndim == 5 and x.ndim == 5:
        fits = displacement.shape[0] in (1, x.shape[0])
    if not fits or tuple(displacement.shape[-4:]) != (3, *s.target):
        raise UsageError(
            f"resample3d: displacement must be {[3, *s.target]}, or one of these per volume of x [N, C, X, Y, Z]; "
            f"it is {list(displacement.shape)} and x.shape={tuple(x.shape)}"
        )
    if displacement.device != x.device or not displacement.is_floating_point():
        raise UsageError(
            f"resample3d: displacement must be floating point on the device of x ({x.device}); "
            f"it is {displacement.dtype} on {displacement.device}"
        )
    return displacement if displacement.ndim == 5 else displacement[None]


def _separable(backend: str | None) -> bool:
    """Whether whoever was asked for can apply matrices, too."""
    request = asked_for(FAMILY.name, backend)
    return request is None or request[0] in ("native", "reference")


def _parallel_axes(s: Sampling) -> list[Matrix] | None:
    """One matrix per axis, or None where the grids are not parallel or the target is empty."""
    m = np.reshape(s.matrix, (3, 4))
    drift = np.abs(m[:, :3] - np.diag(np.diag(m))) @ np.array(s.target)
    if min(s.target) == 0 or drift.max() > PARALLEL:
        return None
    matrices = []
    for axis, (n, count) in enumerate(zip(s.source, s.target)):
        positions = m[axis, 3] + m[axis, axis] * np.arange(count)
        inside = np.clip(positions, -0.5, n - 0.5) if s.boundary == "linear" else positions
        matrices.append(bspline_matrix(n, inside, s.order, s.boundary))
    return matrices


def _plain(s: Sampling) -> tuple:
    return list(s.matrix), list(s.source), list(s.target), s.order, s.boundary


def _restored(matrix, source, target, order, boundary) -> Sampling:
    return Sampling(tuple(matrix), tuple(source), tuple(target), order, boundary)


@custom_op("mrisr::resample3d", mutates_args=())
def _resample3d(
    coefficients: torch.Tensor,
    displacement: torch.Tensor | None,
    matrix: list[float],
    source: list[int],
    target: list[int],
    order: int,
    boundary: str,
    backend: str,
) -> torch.Tensor:
    args = (coefficients, displacement, _restored(matrix, source, target, order, boundary))
    return choose(FAMILY, backend, *args).run(*args)


@custom_op("mrisr::resample3d_slope", mutates_args=())
def _slope(
    coefficients: torch.Tensor,
    displacement: torch.Tensor,
    grad: torch.Tensor,
    matrix: list[float],
    source: list[int],
    target: list[int],
    order: int,
    boundary: str,
    backend: str,
) -> torch.Tensor:
    args = (coefficients, displacement, grad, _restored(matrix, source, target, order, boundary))
    return choose(FAMILY, backend, *args).run.slope(*args)


@custom_op("mrisr::resample3d_adjoint", mutates_args=())
def _adjoint(
    displacement: torch.Tensor | None,
    grad: torch.Tensor,
    matrix: list[float],
    source: list[int],
    target: list[int],
    order: int,
    boundary: str,
    backend: str,
) -> torch.Tensor:
    s = _restored(matrix, source, target, order, boundary)
    return choose(FAMILY, backend, grad).run.adjoint(displacement, grad, s)


@_resample3d.register_fake
def _(coefficients, displacement, matrix, source, target, order, boundary, backend):
    return coefficients.new_empty((*coefficients.shape[:2], *target))


@_slope.register_fake
def _(coefficients, displacement, grad, matrix, source, target, order, boundary, backend):
    return coefficients.new_empty((coefficients.shape[0], 3, *target))


@_adjoint.register_fake
def _(displacement, grad, matrix, source, target, order, boundary, backend):
    return grad.new_empty((*grad.shape[:2], *(n + order + 1 for n in source)))


def _save(ctx, inputs, output) -> None:
    coefficients, displacement, *ctx.options = inputs
    ctx.save_for_backward(coefficients if ctx.needs_input_grad[1] else None, displacement)


def _backward(ctx, grad):
    coefficients, displacement = ctx.saved_tensors
    to_x = _adjoint(displacement, grad, *ctx.options) if ctx.needs_input_grad[0] else None
    to_displacement = None
    if displacement is not None and ctx.needs_input_grad[1]:
        to_displacement = _slope(coefficients, displacement, grad, *ctx.options)
        if displacement.shape[0] < to_displacement.shape[0]:
            to_displacement = to_displacement.sum(0, keepdim=True)
    return to_x, to_displacement, *(None for _ in ctx.options)


_resample3d.register_autograd(_backward, setup_context=_save)


def reference(x, shape, matrix, displacement=None, order: int = 5, boundary: str = "linear") -> torch.Tensor:
    """The whole operator in plain PyTorch, with its derivatives left to autograd."""
    s = _sampling(x, shape, matrix, order, boundary)
    work = work_dtype(x.dtype)
    displacement = None if displacement is None else _checked_displacement(x, displacement, s).to(work)
    batch = x.shape[0] if x.ndim == 5 else 1
    volumes = x.to(work).reshape(batch, _channels(x, batch), *s.source)
    out = Reference()(prefilter_reference(volumes, order, boundary), displacement, s)
    return out.reshape(*x.shape[:-3], *s.target).to(x.dtype)
