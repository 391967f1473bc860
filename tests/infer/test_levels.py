"""Tissue keeps its level, to 1 %, whatever is bright beside it, with the shipped weights."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

import mrisr
from mrisr import grid as grids
from mrisr.weights import registry

pytestmark = [
    pytest.mark.filterwarnings("ignore::mrisr.errors.MrisrWarning"),
    pytest.mark.skipif("base" not in registry.available(), reason="no weights are shipped"),
]
IN_PLANE, THICK = 1.4, 5.0


def rows(scan):
    """One row of spikes in every slice."""
    scan[:, 30] = 4000


def fat(scan):
    """A bright band under the skin on one side, three times as bright as the brain."""
    at = np.linspace(-1, 1, scan.shape[0])[:, None], np.linspace(-1, 1, scan.shape[1])[None]
    radius = np.hypot(*at)
    scan[(radius > 0.62) & (radius < 0.72)] = 1600


def vessels(scan):
    """Vessels through the slices, clipped by the scanner at 4095."""
    for x, y in ((20, 20), (20, 38), (33, 28)):
        scan[x - 1 : x + 2, y - 1 : y + 2] = 4095


def implant(scan):
    """A block as bright as the scanner can say, in the middle slice only."""
    scan[22:28, 24:32, scan.shape[2] // 2] = 32767


BRIGHT = {f.__name__: f for f in (rows, fat, vessels, implant)}


def upscaled(scan):
    """(the result, plain interpolation at the same places, voxels of the result per voxel of the scan)."""
    affine = np.diag([IN_PLANE, IN_PLANE, THICK, 1.0])
    result, info = mrisr.upscale(scan, affine=affine, voxel_size=(0.7, 0.7, 2.5), threads=1, return_info=True)
    sizes = zip(scan.shape, info.target.shape, info.input.voxel_size, info.target.voxel_size)
    at = [grids.axis_positions(n, m, new / old) for n, m, old, new in sizes]
    plain = ndimage.map_coordinates(scan, np.stack(np.meshgrid(*at, indexing="ij")), order=3, mode="nearest")
    return result, plain


@pytest.mark.parametrize("slices", [3, 5, 8, 12])
@pytest.mark.parametrize("bright", BRIGHT)
def test_tissue_beside_something_bright(bright, slices, head):
    plain = np.repeat(head((48, 56, 9), air=0.1, noise=4.0)[:, :, 4:5], slices, axis=2)
    rng = np.random.default_rng(0)
    scan = (plain + rng.normal(0, 4, plain.shape)).clip(0).astype(np.float32)
    before = scan.copy()
    BRIGHT[bright](scan)
    changed = ndimage.binary_dilation(scan != before, iterations=4)
    tissue = (ndimage.uniform_filter(before, 3) > 200) & ~changed
    fine = tissue.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    result, cubic = upscaled(scan)
    assert result.shape == fine.shape and tissue.sum() > 1000
    assert result[fine].mean() == pytest.approx(cubic[fine].mean(), rel=0.01)
    assert result[fine].mean() == pytest.approx(before[tissue].mean(), rel=0.01)


@pytest.mark.parametrize("slices", [3, 8, 12])
def test_a_field_map_of_a_spine_keeps_its_mean(slices):
    """A narrow column with values in most of a slab without any: fewer than one voxel in fifty."""
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    column = np.hypot(x, y) < 0.12
    field = np.where(column, 60 + 40 * x + 25 * np.sin(9 * y), 0)[..., None].repeat(slices, 2).astype(np.float32)
    result, cubic = upscaled(field)
    fine = column.repeat(2, 0).repeat(2, 1)
    inside = ndimage.binary_erosion(fine, iterations=2)  # its edge, half background, is sharper than cubic's
    assert result[inside].mean() == pytest.approx(cubic[inside].mean(), rel=0.01)
    assert result[inside].mean() == pytest.approx(field[ndimage.binary_erosion(column)].mean(), rel=0.01)
    assert not result[~ndimage.binary_dilation(fine, iterations=2)].any()
