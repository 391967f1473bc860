"""The intensity scale: blind to air, undone exactly, and defined for every scan that is not constant."""

import numpy as np
import pytest
import torch

from mrisr.physics.intensity import estimate_noise, estimate_slice_noise, intensity_scale, percentile


def head(noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = np.zeros((60, 60, 60))
    x[15:45, 15:45, 15:45] = 400 + 200 * rng.random((30, 30, 30))
    return x + noise * rng.standard_normal(x.shape)


def test_air_does_not_count():
    assert intensity_scale(np.pad(head(), 40)) == pytest.approx(intensity_scale(head()), rel=1e-6)
    assert intensity_scale(head())[1] == pytest.approx(600, rel=0.02)


def test_percentiles_are_numpys():
    """To the bit, where numpy too computes those of float32 in float32 (before 2.4 it did not)."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = (rng.normal(size=rng.integers(1, 500)) * 10 ** rng.uniform(-3, 4)).astype(np.float32)
        percent = float(rng.choice([0.0, 0.1, 50.0, 99.0, 99.9, 100.0, rng.uniform(0, 100)]))
        expected = np.percentile(values, percent)
        rounding = 0 if expected.dtype == np.float32 else 1e-6 * float(np.abs(values).max())
        assert percentile(np.sort(values), percent) == pytest.approx(float(expected), rel=0, abs=rounding)


def test_it_scales_with_the_scan():
    offset, scale = intensity_scale(head() * 7)
    assert offset == 0 and scale == pytest.approx(7 * intensity_scale(head())[1], rel=1e-5)


@pytest.mark.parametrize("shape", [(20, 20, 20), (170, 170, 170)])
@pytest.mark.parametrize("value", [5.0, -3.0])
def test_a_single_voxel_is_enough(shape, value):
    x = np.zeros(shape, np.float32)
    x[7, 8, 9] = value
    offset, scale = intensity_scale(x)
    assert scale > 0 and np.isfinite(scale) and offset == min(0.0, value)


def test_all_negative_and_shifted_scans():
    offset, scale = intensity_scale(head() - 1000)
    assert offset == pytest.approx(-1000) and scale == pytest.approx(600, rel=0.02)
    offset, scale = intensity_scale(-1 - np.random.default_rng(0).random((20, 20, 20)))
    assert offset < -1.9 and scale > 0


def test_noise_is_estimated_where_anatomy_is_smooth():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(0.7 + 0.02 * rng.standard_normal((40, 40, 40)))
    assert estimate_noise(x) == pytest.approx(0.02, rel=0.05)
    assert estimate_noise(torch.zeros(20, 20, 20)) is None


def test_noise_of_slices_is_found_where_anatomy_changes_from_one_to_the_next():
    generator = torch.Generator().manual_seed(3)
    x, y, z = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (64, 64, 16)), indexing="ij")
    anatomy = 0.6 + 0.2 * torch.sin(x / 2 + 1.5 * z) * torch.cos(y / 2)
    seen = anatomy + 0.02 * torch.randn(anatomy.shape, generator=generator)
    assert estimate_slice_noise(seen, 2) == pytest.approx(0.02, rel=0.05)
    assert estimate_slice_noise(seen.permute(2, 0, 1), 0) == pytest.approx(estimate_slice_noise(seen, 2), rel=0.02)
    assert estimate_noise(seen) > 1.15 * estimate_slice_noise(seen, 2)
    assert estimate_slice_noise(torch.zeros(20, 20, 20), 2) is None
    assert estimate_slice_noise(seen[:4], 2) is None
