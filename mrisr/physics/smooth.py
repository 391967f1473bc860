"""Smooth functions of position on voxel grids, from few points.

A polynomial of degree d in millimetres is one of degree d in the voxel indices of any grid, oblique ones too, so its
values at (d + 1)^3 Chebyshev points give every voxel exactly by one small matrix per axis (barycentric Lagrange
interpolation: Berrut and Trefethen, SIAM Review 46, 2004). Functions that are analytic but no polynomials converge
geometrically; `converged` doubles the points until the voxels that it checks agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mrisr.grid import Grid
from mrisr.ops.resample import apply_axes

Function = Callable[[torch.Tensor], torch.Tensor]  # points [3, P] float64 (RAS, mm) -> values [C, P]
CHECKED = 500  # voxels
MOST_POINTS = 97  # per axis
AT_ONCE = 1 << 20  # voxels, where each is evaluated by itself


def world(affine: np.ndarray, axes) -> torch.Tensor:
    """World coordinates of the index lattice spanned by three index vectors: float64 [3, len * len * len] mm."""
    index = torch.meshgrid(*(torch.as_tensor(np.array(a), dtype=torch.float64) for a in axes), indexing="ij")
    flat = torch.stack([i.reshape(-1) for i in index])
    matrix = torch.from_numpy(np.array(affine, np.float64))
    return matrix[:3, :3] @ flat + matrix[:3, 3:]


def polynomial(function: Function, grid: Grid, degree: int, *, device="cpu", dtype=torch.float32) -> torch.Tensor:
    """`function`, a polynomial of `degree` at most, at the voxels of `grid`: [C, X, Y, Z]."""
    nodes, matrices = zip(*(_axis(n, degree + 1) for n in grid.shape))
    values = function(world(grid.affine, nodes)).reshape(-1, *map(len, nodes))
    return apply_axes(values.to(device=device, dtype=dtype), matrices)


def converged(function: Function, grid: Grid, tolerance, start: int, *, device="cpu", dtype=torch.float32):
    """A smooth `function` at the voxels of `grid`, [C, X, Y, Z], good to `tolerance` where it was checked.

    Args:
        tolerance: largest error of each of the C values, one number or [C].
        start: points per axis to begin with.
    """
    rng = np.random.default_rng(0)
    sample = [rng.integers(n, size=CHECKED) for n in grid.shape]
    affine = torch.from_numpy(np.array(grid.affine))
    places = affine[:3, :3] @ torch.from_numpy(np.array(sample, np.float64)) + affine[:3, 3:]
    expected = function(places)
    tolerance = torch.as_tensor(tolerance, dtype=torch.float64).reshape(-1, 1)
    count = min(start, MOST_POINTS)
    while True:
        values = polynomial(function, grid, count - 1, device=device, dtype=dtype)
        interpolation = values[:, sample[0], sample[1], sample[2]].to("cpu", torch.float64)
        if ((interpolation - expected).abs() <= tolerance).all() or count >= max(grid.shape):
            return values
        if count >= MOST_POINTS:
            return voxelwise(function, grid, device=device, dtype=dtype)
        count = min(2 * count - 1, MOST_POINTS)


def voxelwise(function: Function, grid: Grid, *, device="cpu", dtype=torch.float32) -> torch.Tensor:
    """Any `function` at the voxels of `grid`, some slabs at a time: [C, X, Y, Z]."""
    rest = [np.arange(n) for n in grid.shape[1:]]
    thick = max(1, AT_ONCE // max(1, grid.shape[1] * grid.shape[2]))
    slabs = []
    for first in range(0, grid.shape[0], thick):
        index = np.arange(first, min(first + thick, grid.shape[0]))
        values = function(world(grid.affine, (index, *rest))).to(device=device, dtype=dtype)
        slabs.append(values.reshape(-1, len(index), *grid.shape[1:]))
    return torch.cat(slabs, dim=1)


def _axis(n: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Points along an axis of n voxels (index units), and the matrix [n, points] from them to the voxels."""
    voxels = np.arange(n, dtype=np.float64)
    if count >= n:
        return voxels, None
    if count == 1:
        return np.array([(n - 1) / 2]), np.ones((n, 1))
    nodes = (n - 1) / 2 * (1 - np.cos(np.pi * np.arange(count) / (count - 1)))
    weights = (-1.0) ** np.arange(count)
    weights[[0, -1]] *= 0.5
    apart = voxels[:, None] - nodes
    hit = np.abs(apart) < 1e-12 * n
    rows = weights / np.where(hit, 1.0, apart)
    rows = np.where(hit.any(1, keepdims=True), hit, rows)
    return nodes, rows / rows.sum(1, keepdims=True)
