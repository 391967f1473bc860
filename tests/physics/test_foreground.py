"""What is head: the native rule and SciPy's are one rule; air, masked backgrounds, and what only looks like one."""

import numpy as np
import pytest
import torch

from mrisr import native
from mrisr.physics import foreground
from mrisr.physics.intensity import intensity_scale, robust_scale


@pytest.fixture(scope="module")
def scan(head):
    return head((40, 44, 36)) / np.float32(900)


def stripped(scan):
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.shape), indexing="ij"))
    return np.where((grid**2).sum(0) < 0.4, scan, 0).astype(np.float32)


@pytest.mark.skipif(native.reason() is not None, reason="the native core was not built: there is one rule only")
@pytest.mark.parametrize("open_axes", [(True, True, True), (True, True, False), (False, False, False)])
def test_native_and_scipy_agree(scan, open_axes):
    for v in (scan, stripped(scan), scan[:, :, 12:17], np.zeros_like(scan)):
        assert (foreground.tissue(v, open_axes) == foreground._tissue(v, open_axes)).mean() > 0.9999
    for v in (scan, stripped(scan), stripped(scan) - 3, np.maximum(scan - 0.05, 0), scan[10:20]):
        ours, theirs = foreground.masked_background(v), foreground._masked_background(v)
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.value == theirs.value and np.array_equal(ours.mask, theirs.mask))


@pytest.mark.skipif(native.reason() is not None, reason="the native core was not built: there is one rule only")
def test_native_and_pytorch_find_the_same_bricks(head):
    for shape in ((40, 44, 36), (41, 47, 39), (3, 70, 8), (17, 9, 300)):
        v = torch.from_numpy(head(shape) / np.float32(900))
        for x in (v, v * (torch.arange(shape[2]) < 20), torch.zeros_like(v), v.transpose(0, 1)):
            found = foreground.bricks(x, threads=2)
            assert found.dtype == bool and np.array_equal(found, foreground._bricks(x))


def test_a_background_in_rows_and_specks_is_the_one_that_scipy_finds():
    """Rows longer than what is looked at together, runs that meet again, and a corner that hangs on one voxel."""
    rng = np.random.default_rng(0)
    for shape in ((9, 14, 530), (30, 31, 33), (5, 5, 5), (1, 40, 41)):
        v = (rng.random(shape) < 0.02).astype(np.float32)
        v[tuple(slice(n // 3, -(-2 * n // 3)) for n in shape)] = 1
        v[..., shape[2] // 2] = rng.random(shape[:2]) < 0.7
        ours, theirs = foreground.masked_background(v), foreground._masked_background(v)
        assert (ours is None) == (theirs is None)
        assert ours is None or np.array_equal(ours.mask, theirs.mask)


def test_air_is_outside_whatever_its_noise_and_dark_holes_are_head(head):
    for noise in (5.0, 40.0):
        v = head((40, 44, 36), noise=noise) / np.float32(900)
        v[18:22, 20:24, 16:20] = 0  # a dark ventricle
        found = foreground.tissue(v)
        assert found[20, 22, 18] == 1 and not found[:3].any() and not found[..., -3:].any()
        assert found[v > 0.5].all() and found.mean() < 0.6


def test_a_masked_background_is_exact_and_noise_is_none(scan):
    found = foreground.masked_background(stripped(scan))
    assert found.value == 0 and np.array_equal(found.mask, stripped(scan) == 0)
    found = foreground.masked_background(stripped(scan) - 3)
    assert found.value == -3
    head = stripped(scan)[stripped(scan) != 0]
    level = np.float32((head.min() + np.median(head)) / 2)  # brighter than the darkest of the head
    grey = np.where(stripped(scan) == 0, level, stripped(scan))
    assert head.min() < level and not (head == level).any()
    found = foreground.masked_background(grey)
    assert found.value == level and np.array_equal(found.mask, stripped(scan) == 0)
    assert foreground._masked_background(grey).value == level
    quantised = np.round(scan * 100)  # many exact zeros in the noise of air, nowhere solid
    assert (quantised == 0).mean() > 0.1 and foreground.masked_background(quantised) is None


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("slices", [3, 5, 12])
def test_bright_rows_do_not_set_the_scale(head, rows, slices):
    clean = head((128, 128, 60), air=0.2)[:, :, 20 : 20 + slices]
    spoilt = clean.copy()
    spoilt[60 : 60 + rows] = 9000
    expected, found = intensity_scale(clean)[1], robust_scale(spoilt)
    assert found.scale == pytest.approx(expected, rel=0.05) and 0 < found.outliers < 0.1
    assert robust_scale(clean).outliers == 0


def test_a_small_head_in_noisy_air_is_no_outlier():
    rng = np.random.default_rng(0)
    x = np.abs(20 * rng.standard_normal((60, 60, 60))).astype(np.float32)
    x[25:35, 25:35, 25:35] = 800 + 100 * rng.random((10, 10, 10))
    found = robust_scale(x)
    assert found.outliers == 0 and found.scale == pytest.approx(900, rel=0.05)
