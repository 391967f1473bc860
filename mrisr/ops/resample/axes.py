"""out = M x along one axis of a volume: resampling, forward models, their adjoints and the consistency
correction.

The native backend leaves out the ends of matrix rows that are nothing but a prefilter's decayed tail (below
1e-9 of the row's largest entry), runs on all of PyTorch's threads and copies no volume. NaN in a sample that
no row reads stays where it is.
"""

from __future__ import annotations

import numpy as np
import torch

from mrisr.errors import UsageError
from mrisr.ops._core import CPU
from mrisr.ops._dispatch import Backend, Family, choose, reference_backend
from mrisr.ops._layout import FLOAT, takes
from mrisr.ops._library import custom_op
from mrisr.ops.arrays import DROP


def axis_apply(x, matrix, axis: int, *, backend: str | None = None):
    """Apply a matrix to one of the last three axes.

    Args:
        x: [..., X, Y, Z], torch tensor or numpy array, floating point.
        matrix: [n_out, n_in], numpy or torch, used in float64 (native: coefficients rounded to float32).
        axis: 0, 1 or 2, counted in X, Y, Z; x has n_in samples there.

    Returns:
        The kind of `x`, same dtype, n_out samples along `axis`. Differentiable in a torch `x` (adjoint: the
        transpose).

    Raises:
        UsageError: sizes do not fit. BackendError: `backend` was asked for and cannot run.
    """
    if isinstance(x, np.ndarray):
        return axis_apply(torch.from_numpy(np.ascontiguousarray(x)), matrix, axis, backend=backend).numpy()
    if axis not in (0, 1, 2) or x.ndim < 3:
        raise UsageError(
            f"axis_apply: axis must be 0, 1 or 2 of a volume [..., X, Y, Z]; axis={axis}, x.shape={_shape(x)}"
        )
    if not x.is_floating_point():
        raise UsageError(f"axis_apply: x must be floating point; it is {x.dtype}")
    matrix = torch.as_tensor(matrix, dtype=torch.float64, device=x.device)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.shape[1] != x.shape[axis - 3]:
        raise UsageError(
            f"axis_apply: matrix must be [n_out, {x.shape[axis - 3]}] to act on axis {axis} of "
            f"x.shape={_shape(x)}; it is {_shape(matrix)}"
        )
    return _axis_apply(x, matrix, axis, backend or "")


def _shape(x) -> tuple[int, ...]:
    return tuple(x.shape)


@custom_op("mrisr::axis_apply", mutates_args=())
def _axis_apply(x: torch.Tensor, matrix: torch.Tensor, axis: int, backend: str) -> torch.Tensor:
    return choose(FAMILY, backend, x, matrix, axis).run(x, matrix, axis)


def _empty_result(x: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    shape = list(x.shape)
    shape[axis - 3] = matrix.shape[0]
    return x.new_empty(shape)


@_axis_apply.register_fake
def _(x, matrix, axis, backend):
    return _empty_result(x, matrix, axis)


def _save(ctx, inputs, output) -> None:
    _, matrix, ctx.axis, ctx.backend = inputs
    ctx.save_for_backward(matrix)


def _backward(ctx, grad):
    (matrix,) = ctx.saved_tensors
    return _axis_apply(grad, matrix.T, ctx.axis, ctx.backend), None, None, None


_axis_apply.register_autograd(_backward, setup_context=_save)


def reference(x: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """One plain matrix product in x's dtype; no transposed copy of the volume is made."""
    # Half precision has no batched product on every device, and the sum would lose digits: one step up.
    work = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    matrix, y = torch.as_tensor(matrix).to(device=x.device, dtype=work), x.to(work)
    if axis == 2:
        y = y @ matrix.T
    elif axis == 1:
        y = matrix @ y
    else:
        lead, (nx, ny, nz) = y.shape[:-3], y.shape[-3:]
        y = (matrix @ y.reshape(*lead, nx, ny * nz)).reshape(*lead, matrix.shape[0], ny, nz)
    return y.to(x.dtype).contiguous()


def _run_native(x: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    x, matrix = x.contiguous(), matrix.contiguous()
    out = _empty_result(x, matrix, axis)
    inner = int(np.prod(x.shape[x.ndim + axis - 2 :], dtype=np.int64))
    outer = int(np.prod(x.shape[: x.ndim + axis - 3], dtype=np.int64))
    n_out, n_in = matrix.shape
    CPU("axis_apply", x.device, out, x, matrix, outer, n_in, n_out, inner, DROP)
    return out


FAMILY = Family(
    "axis_apply",
    (
        Backend("native", _run_native, CPU.reason, takes("cpu", FLOAT)),
        reference_backend(reference),
    ),
)
