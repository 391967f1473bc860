"""The shipped weights beat interpolation on people they were not trained on, by a scanner written here anew.

Nothing of `mrisr.physics` is used: k-space is cut by a plain (periodic) FFT, slices are weighted sums of voxels.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import mrisr
from tests import real_data

SIZE = 96
HEADS = ("t1w_0p9mm_b", "flair_1mm_p26")
MORE = pytest.mark.slow("ten more blocks of 96^3; the template is in `make test`")
# name: (factor per axis, k-space cut or slices, noise / median)
CASES = {
    "iso2": ((2, 2, 2), True, 0.0),
    "iso2n": ((2, 2, 2), True, 0.02),
    "iso1p5": ((1.5, 1.5, 1.5), True, 0.0),
    "thick4": ((1, 1, 4), False, 0.0),
    "thick4-first-axis": ((4, 1, 1), False, 0.0),
}


def positions(n: int, r: float) -> np.ndarray:
    m = int(np.floor(n / r + 0.5 + 1e-4))
    return 0.5 * ((n - 1) - (m - 1) * r) + r * np.arange(m)


def cut(n: int, r: float) -> np.ndarray:
    """Band-limit at 0.5 / r and evaluate the trigonometric polynomial, [m, n]."""
    f = np.fft.fftfreq(n)
    kept = np.abs(f) < 0.5 / r
    waves = np.exp(2j * np.pi * np.outer(positions(n, r), f[kept])) / n
    return (waves @ np.exp(-2j * np.pi * np.outer(f[kept], np.arange(n)))).real


def slices(n: int, r: float) -> np.ndarray:
    """Gaussian slices as thick as their spacing, [m, n]."""
    weights = np.exp(-0.5 * ((np.arange(n) - positions(n, r)[:, None]) / (r / 2.355)) ** 2)
    return weights / weights.sum(1, keepdims=True)


def reference(name: str) -> np.ndarray:
    """The middle 96^3 of a held-out head, or of the MNI152 template."""
    if name == "mni152":
        data = pytest.importorskip("nilearn.datasets").load_mni152_template(resolution=1).get_fdata()
    else:
        path = real_data.SCANS / f"{name}.nii.gz"
        if not path.exists():
            pytest.skip(f"the held-out scan {path.name} is not beside this checkout")
        data = np.asarray(nib.load(path).dataobj, np.float64)
    start = [(n - SIZE) // 2 for n in data.shape]
    return data[tuple(slice(s, s + SIZE) for s in start)]


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("name", [*(pytest.param(n, marks=[real_data.needs_scans, MORE]) for n in HEADS), "mni152"])
def test_it_beats_cubic_interpolation(name, case):
    fine = reference(name)
    factor, kspace, noise = CASES[case]
    scan = fine
    for axis, r in enumerate(factor):
        if r > 1:
            matrix = (cut if kspace else slices)(SIZE, r)
            scan = np.moveaxis(np.tensordot(matrix, np.moveaxis(scan, axis, 0), 1), 0, axis)
    mask = fine > 0.1 * np.percentile(fine, 99.5)
    if noise:
        sigma, rng = noise * np.median(fine[mask]), np.random.default_rng(0)
        scan = np.hypot(scan + sigma * rng.standard_normal(scan.shape), sigma * rng.standard_normal(scan.shape))
    at = [(np.arange(SIZE) - 0.5 * ((SIZE - 1) - (m - 1) * r)) / r for m, r in zip(scan.shape, factor)]
    cubic = map_coordinates(scan, np.meshgrid(*at, indexing="ij"), order=3, mode="nearest")
    ours = mrisr.upscale(scan.astype(np.float32), input_voxel_size=factor, voxel_size=1.0)
    assert ours.shape == fine.shape
    # Not the rim of the block, which a head would not end at.
    inside = mask & np.pad(np.ones((SIZE - 16,) * 3, bool), 8)
    gain = 10 * np.log10(np.mean((cubic - fine)[inside] ** 2) / np.mean((ours - fine)[inside] ** 2))
    assert gain > 0.6, f"{gain:.2f} dB over cubic"
