"""How the head has moved between two stacks: a rigid transform by SimpleITK, from what the headers say on.

Two stacks of different orientation are sharp along different axes. Each is blurred to what the coarsest of them
resolves, so that both show the same picture, and the correlation of the two within the head is made largest, from
coarse to fine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.errors import InputError
from mrisr.grid import Grid
from mrisr.ops.resample import apply_axes, bspline_matrix
from mrisr.physics.degrade import axis_matrix
from mrisr.physics.foreground import CERTAIN
from mrisr.physics.psf import PSF, AxisPSF

SAMPLES = 2.5  # of a picture to register, per width that it resolves
COARSEST = 8.0  # mm: no picture is blurred further than that, whatever the slices
LEVELS = (4, 2, 1)  # voxels of the picture that are one, from coarse to fine
ITERATIONS, LEARNING, STOP = 100, 1.0, 1e-4  # per level; step in mm, and where it ends
SWAP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS


@dataclass(frozen=True, eq=False)
class Picture:
    """A stack as it is registered: float32 [x, y, z], alike in resolution along all axes, and its head."""

    values: np.ndarray
    head: np.ndarray
    grid: Grid


def common_width(psfs: list[PSF]) -> float:
    """What the coarsest axis of the stacks resolves, mm."""
    return min(COARSEST, max(axis.width for psf in psfs for axis in psf))


def picture(lr: torch.Tensor, grid: Grid, psf: PSF, width: float) -> Picture:
    """A stack [x, y, z] of normalised intensities, blurred to `width` mm along every axis."""
    step = width / SAMPLES
    fine = grids.plan(
        grid, voxel_size=tuple(step if axis.width < width else min(step, v) for axis, v in zip(psf, grid.voxel_size))
    )
    matrices = []
    for n, m, v, out, axis in zip(grid.shape, fine.shape, grid.voxel_size, fine.voxel_size, psf):
        if axis.width >= 0.999 * width or out < v:
            at = np.clip(grids.axis_positions(n, m, out / v), 0, n - 1)
            matrices.append(bspline_matrix(n, at, 3))
            continue
        extra = float(np.sqrt(width**2 - axis.width**2))
        matrices.append(axis_matrix(n, m, v, out, AxisPSF("gaussian", extra)))
    values = apply_axes(lr.cpu(), tuple(matrices)).numpy()
    return Picture(values, values > CERTAIN, fine)


def register(fixed: Picture, moving: Picture, threads: int | None = None) -> np.ndarray:
    """[4, 4] mm to mm: where the second shows what the first shows at a point."""
    sitk = _simpleitk()
    here, there = _image(sitk, fixed.values, fixed.grid), _image(sitk, moving.values, moving.grid)
    method = sitk.ImageRegistrationMethod()
    if threads is not None:
        method.SetNumberOfThreads(threads)
    method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(_image(sitk, fixed.head.astype(np.uint8), fixed.grid))
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(LEARNING, STOP, ITERATIONS, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(LEVELS)
    method.SetSmoothingSigmasPerLevel([0.5 * k if k > 1 else 0.0 for k in LEVELS])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    transform = sitk.Euler3DTransform()
    middle = np.argwhere(fixed.head).mean(axis=0)
    transform.SetCenter((SWAP @ fixed.grid.affine @ [*middle, 1])[:3].tolist())
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(here, there)
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return SWAP @ matrix @ SWAP


def _image(sitk, values: np.ndarray, grid: Grid):
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    affine = SWAP @ grid.affine
    size = np.array(grid.voxel_size)
    image.SetSpacing(size.tolist())
    image.SetDirection((affine[:3, :3] / size).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _simpleitk():
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            f"join: registration needs SimpleITK ({error}); install it: pip install '.[join]', or give register=False "
            "where the headers are right"
        ) from error
    return SimpleITK
