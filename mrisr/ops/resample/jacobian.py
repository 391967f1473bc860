"""How much a mapping between voxel grids stretches or compresses the volume."""

from __future__ import annotations

from math import isfinite

import numpy as np
import torch

from mrisr.errors import UsageError


def affine_rows(matrix, op: str) -> tuple[float, ...]:
    """A finite [3, 4] or [4, 4] index map as its twelve numbers; UsageError of `op` else."""
    rows = [list(map(float, row)) for row in (matrix.tolist() if hasattr(matrix, "tolist") else matrix)]
    if len(rows) not in (3, 4) or any(len(row) != 4 or not all(map(isfinite, row)) for row in rows):
        raise UsageError(f"{op}: matrix must be [3, 4] or [4, 4] and finite; it is {rows}")
    if rows[3:] not in ([], [[0.0, 0.0, 0.0, 1.0]]):
        raise UsageError(f"{op}: the last row of a [4, 4] matrix must be 0 0 0 1; it is {rows[3]}")
    return *rows[0], *rows[1], *rows[2]


def jacobian_determinant(matrix, displacement: torch.Tensor) -> torch.Tensor:
    """Volume of a displaced target voxel as a share of the same voxel undisplaced, negative where space is folded.

    Derivatives are central differences between target voxels, one-sided at the ends: exact for an affine displacement.

    Args:
        matrix: [3, 4] or [4, 4], target voxel index -> source voxel index.
        displacement: [..., 3, X', Y', Z'], source voxels.

    Returns:
        det(d(matrix v + displacement) / dv) / det(matrix): [..., X', Y', Z'], 1 where nothing is displaced.
        Differentiable in `displacement`.

    Raises:
        UsageError: sizes do not fit, or the matrix cannot be inverted.
    """
    if displacement.ndim < 4 or displacement.shape[-4] != 3:
        raise UsageError(
            f"jacobian_determinant: displacement must be [..., 3, X', Y', Z']; it is {list(displacement.shape)}"
        )
    linear = np.reshape(affine_rows(matrix, "jacobian_determinant"), (3, 4))[:, :3]
    if abs(np.linalg.det(linear)) < 1e-12:
        raise UsageError(f"jacobian_determinant: matrix must be invertible; it is {linear.tolist()}")
    columns = []
    for axis in range(3):
        slope = _difference(displacement, axis - 3)
        own = torch.as_tensor(linear[:, axis], dtype=slope.dtype, device=slope.device)
        columns.append((slope + own[:, None, None, None]).unbind(-4))
    (a, d, g), (b, e, h), (c, f, i) = columns
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return determinant / float(np.linalg.det(linear))


def _difference(x: torch.Tensor, axis: int) -> torch.Tensor:
    n = x.shape[axis]
    if n < 2:
        return torch.zeros_like(x)
    step = x.narrow(axis, 1, n - 1) - x.narrow(axis, 0, n - 1)
    inside = (step.narrow(axis, 1, n - 2) + step.narrow(axis, 0, n - 2)) / 2
    return torch.cat([step.narrow(axis, 0, 1), inside, step.narrow(axis, n - 2, 1)], axis)
