"""A synthetic head: nested ellipsoids with texture, small enough to evaluate in a second."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from mrisr.evaluate.cases import Subject, subject_of
from mrisr.grid import Grid


def synthetic_head(n: int = 48, seed: int = 0) -> np.ndarray:
    """float32 [n, n, n]: skin, bone, cortex with folds, white matter, ventricles; noise 1 % of the
    brightest."""
    rng = np.random.default_rng(seed)
    axes = np.linspace(-1, 1, n)
    x, y, z = np.meshgrid(axes, axes, axes, indexing="ij")

    def inside(a, b, c, dx=0.0):
        return np.clip(0.5 + (1 - np.sqrt(((x - dx) / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)) * n / 6, 0, 1)

    head = 300 * inside(0.85, 0.95, 0.9) - 200 * inside(0.78, 0.88, 0.83) + 500 * inside(0.72, 0.82, 0.77)
    folds = np.sin(14 * x + 3 * np.sin(5 * y)) * np.sin(12 * y + 2 * np.sin(7 * z)) * np.sin(13 * z)
    head += inside(0.72, 0.82, 0.77) * 150 * folds
    for side in (-0.25, 0.25):
        head -= 350 * inside(0.1, 0.35, 0.2, side)
    return np.maximum(head + rng.normal(0, 8, head.shape), 0).astype(np.float32)


@pytest.fixture(scope="session")
def head() -> Subject:
    return subject_of("head", synthetic_head(), Grid((48, 48, 48), np.diag([0.9, 0.9, 0.9, 1.0])))


@pytest.fixture
def scans(tmp_path):
    """A folder of two synthetic heads of different voxel sizes, an odd shape among them."""
    folder = tmp_path / "scans"
    folder.mkdir()
    affine = np.diag([-0.7, 0.7, 0.8, 1.0])
    nib.save(nib.Nifti1Image(synthetic_head(48, 1)[:, :47, 1:], affine), folder / "one.nii.gz")
    nib.save(nib.Nifti1Image(synthetic_head(40, 2), np.eye(4)), folder / "two.nii")
    return folder
