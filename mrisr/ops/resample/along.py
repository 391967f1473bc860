"""One matrix per axis: `apply_axes`, of tensors on any device and of NumPy arrays, and the adjoint's matrices.

An array of float32 goes straight to the native core; everything else by the operator `axis_apply` of PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mrisr.errors import UsageError
from mrisr.ops import arrays
from mrisr.ops.resample.matrices import Matrix

if TYPE_CHECKING:
    import torch

    Volume = TypeVar("Volume", np.ndarray, torch.Tensor)


def apply_axes(x: Volume, matrices: Sequence[Matrix | torch.Tensor | None]) -> Volume:
    """Apply one matrix per axis to the last three axes of `x`.

    Args:
        x: [..., X, Y, Z], floating point, NumPy or PyTorch.
        matrices: three of [n_out, n_in] or None (that axis is left alone).

    Returns:
        [..., X', Y', Z'] of the kind and dtype, and on the device, of `x`. Differentiable in a tensor.
    """
    if len(matrices) != 3:
        raise UsageError(f"apply_axes: expected three matrices (or None), found {len(matrices)}")
    present = [(axis, m) for axis, m in enumerate(matrices) if m is not None]
    # Shrinking axes first: every later product is then on a smaller array.
    for axis, matrix in sorted(present, key=lambda item: item[1].shape[0] / item[1].shape[1]):
        if matrix.shape[1] != x.shape[axis - 3]:
            raise UsageError(
                f"apply_axes: the matrix of axis {axis} takes {matrix.shape[1]} samples, "
                f"but x.shape={tuple(x.shape)} has {x.shape[axis - 3]} there"
            )
        x = _apply(x, matrix, axis)
    return x


def _apply(x: Volume, matrix: Matrix | torch.Tensor, axis: int) -> Volume:
    if isinstance(x, np.ndarray) and x.ndim == 3 and x.dtype == np.float32 and arrays.missing() is None:
        return arrays.axis_apply(np.ascontiguousarray(x), matrix, axis)
    from mrisr.ops.resample.axes import axis_apply

    return axis_apply(x, matrix, axis)


def transposed(matrices: Sequence[Matrix | None]) -> tuple[Matrix | None, ...]:
    """The adjoint of `apply_axes(., matrices)` is `apply_axes(., transposed(matrices))`."""
    return tuple(None if m is None else m.T for m in matrices)
