"""A head-like phantom, and stacks of thick slices of it."""

from __future__ import annotations

import numpy as np
import torch

from mrisr.grid import Grid, plan
from mrisr.physics.psf import AxisPSF
from mrisr.physics.stack import StackModel
from mrisr.volume import Volume

SIZE, THICK = 40, 4
FINE = Grid((SIZE,) * 3, np.eye(4))


def phantom(seed: int = 0) -> np.ndarray:
    """Folds of all scales and directions, none along the axes, in an ellipsoid with a bright rim."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, SIZE),) * 3, indexing="ij"))
    radius = np.sqrt((at**2 / np.array([0.9, 0.8, 0.85])[:, None, None, None] ** 2).sum(0))
    folds = np.zeros_like(radius)
    for _ in range(24):
        wave, phase = rng.uniform(-22, 22, 3), rng.uniform(0, 2 * np.pi)
        folds += np.sin(np.tensordot(wave, at, 1) + phase)
    inside = 1 / (1 + np.exp(25 * (radius - 0.9)))
    return (inside * (500 + 60 * folds) + 300 * np.exp(-(((radius - 0.9) / 0.06) ** 2))).astype(np.float32)


def stack(truth: np.ndarray, axis: int, moved=None, noise: float = 0.0) -> Volume:
    grid = plan(FINE, voxel_size=tuple(THICK if a == axis else 1 for a in range(3)))
    psf = tuple(AxisPSF("gaussian" if a == axis else "kspace", v) for a, v in enumerate(grid.voxel_size))
    values = StackModel.of(FINE, grid, psf, moved).forward(torch.from_numpy(truth)).numpy()
    values += noise * np.random.default_rng(axis).standard_normal(values.shape)
    return Volume(values.astype(np.float32), grid.affine, name=("sagittal", "coronal", "axial")[axis])
