"""Noise out of a scan by cosine blocks: the core against NumPy, what it may do, and what it finds of the noise."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mrisr import native
from mrisr.physics import wiener as module
from mrisr.physics.psf import AxisPSF
from mrisr.physics.wiener import (
    ANATOMY,
    anatomy,
    cosine_shares,
    highest,
    noise_bands,
    noise_level,
    wiener,
    without_noise,
)

WHITE = (0.5, 0.5, 0.5)
HALF_BAND = (0.25, 0.5, 0.5)
MM = (1.0, 1.0, 1.0)

needs_native = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))


def head(shape=(48, 40, 36)) -> np.ndarray:
    """Smooth tissue with an edge, between 0.3 and 0.9."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = 0.6 + 0.2 * np.sin(3 * x) * np.cos(2 * y + z)
    return np.where(x**2 + y**2 + z**2 < 0.8, inside, 0.4).astype(np.float32)


def noise(shape, sigma: float, seed: int = 0) -> np.ndarray:
    return (sigma * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def cut(volume: np.ndarray, axis: int, band: float) -> np.ndarray:
    """Without what lies beyond a band along one axis."""
    spectrum = np.fft.fft(volume, axis=axis)
    outside = np.abs(np.fft.fftfreq(volume.shape[axis])) >= band
    spectrum[(slice(None),) * axis + (outside,)] = 0
    return np.fft.ifft(spectrum, axis=axis).real.astype(np.float32)


@needs_native
@pytest.mark.parametrize("shape", [(17, 22, 35), (4, 5, 70), (2, 9, 3), (50, 4, 4)])
@pytest.mark.parametrize("bands", [WHITE, HALF_BAND])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_core_agrees_with_numpy(shape, bands, threads):
    rng = np.random.default_rng(1)
    scan = rng.standard_normal(shape).astype(np.float32)
    pilot = (scan + rng.standard_normal(shape)).astype(np.float32)
    variance = (0.49 * cosine_shares(bands)).astype(np.float32)
    if min(shape) < module.BLOCK:  # np.pad mirrors again and again, as the core does
        assert np.pad(scan, 3, mode="reflect").shape == tuple(n + 6 for n in shape)
    expected = module._wiener(scan, pilot, variance)
    np.testing.assert_allclose(wiener(scan, pilot, 0.7, bands, threads), expected, atol=2e-5)


@needs_native
def test_one_thread_and_many_give_the_same_bits():
    scan = noise((70, 21, 33), 1.0)
    pilot = noise(scan.shape, 1.0, seed=2)
    one = wiener(scan, pilot, 0.5, WHITE, 1)
    assert all((wiener(scan, pilot, 0.5, WHITE, threads) == one).all() for threads in (2, 3, 7))


@pytest.mark.parametrize("bands", [(0.25,) * 3, (0.17,) * 3, (0.125, 0.125, 0.5), (0.05,) * 3])
def test_brightness_is_never_taken_for_noise(bands):
    """In a narrow band few coefficients hold much noise, and the mean of a block is the one that holds most."""
    chosen = highest(cosine_shares(bands))
    assert len(set(chosen)) == module.HIGHEST and 0 not in chosen
    scan = head() + noise((48, 40, 36), 0.03)
    for axis, band in enumerate(bands):
        scan = cut(scan, axis, band)
    assert noise_level(scan + 5, bands) == pytest.approx(noise_level(scan, bands), rel=0.1)


def test_noise_of_a_scan_that_is_zero_filled_along_every_axis():
    bands = (0.25, 0.25, 0.25)
    clean, white = 0 * head((64, 64, 64)) + 0.6, noise((64, 64, 64), 0.05)
    for axis in range(3):
        white = cut(white, axis, 0.25)
    assert noise_level(clean + white, bands) == pytest.approx(0.05, rel=0.15)


def test_without_the_core_thin_stacks_tell_nothing_either(monkeypatch):
    monkeypatch.setattr(module.native, "reason", lambda: "none here")
    assert noise_level(np.ones((40, 40, 3), np.float32), WHITE, ANATOMY) is None


@needs_native
def test_the_core_knows_the_same_shares_and_energies(monkeypatch):
    for bands in (WHITE, HALF_BAND, (0.125, 0.25, 0.4)):
        np.testing.assert_allclose(native.module().cosine_shares(bands), cosine_shares(bands), rtol=1e-5)
    scan = head() + noise((48, 40, 36), 0.03)
    for bands in (WHITE, HALF_BAND):
        core = noise_level(scan, bands, ANATOMY)
        with monkeypatch.context() as patch:
            patch.setattr(module.native, "reason", lambda: "none here")
            assert noise_level(scan, bands, ANATOMY) == pytest.approx(core, rel=1e-4)


def test_without_noise_the_scan_stays():
    scan = head()
    np.testing.assert_allclose(wiener(scan, scan, 0.0, WHITE), scan, atol=1e-6)


def test_the_mean_stays_whatever_the_noise():
    scan = np.full((12, 11, 10), 0.7, np.float32)
    np.testing.assert_allclose(wiener(scan, 0 * scan, 5.0, WHITE), 0.7, atol=1e-5)


def test_noise_goes_and_signal_stays():
    clean = head()
    scan = clean + noise(clean.shape, 0.04)
    before, after = (np.mean((v - clean) ** 2) for v in (scan, wiener(scan, clean, 0.04, WHITE)))
    assert after < 0.1 * before
    assert np.abs(wiener(clean, clean, 0.04, WHITE) - clean).max() < 0.05


@pytest.mark.parametrize("pilot", ["the scan", "an answer"])
def test_a_second_pass_takes_more_of_the_noise(pilot):
    clean = head()
    scan = clean + noise(clean.shape, 0.06)
    by = scan if pilot == "the scan" else clean + noise(clean.shape, 0.03, seed=1)
    once, twice = (np.mean((f(scan, by, 0.06, WHITE) - clean) ** 2) for f in (wiener, without_noise))
    assert twice < 0.95 * once
    np.testing.assert_allclose(without_noise(clean, clean, 0.0, WHITE), clean, atol=1e-6)


def test_noise_that_was_interpolated_goes_too():
    clean = cut(head(), 0, 0.25)
    scan = clean + cut(noise(clean.shape, 0.05), 0, 0.25)
    found = noise_level(scan, HALF_BAND, ANATOMY)
    assert found == pytest.approx(0.05, rel=0.15)
    assert noise_level(scan, WHITE, ANATOMY) < 0.4 * found  # as if it were white, hardly any is seen
    error = [np.mean((wiener(scan, clean, found, b) - clean) ** 2) for b in (HALF_BAND, WHITE)]
    assert error[0] < 0.2 * np.mean((scan - clean) ** 2)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_the_noise_is_found(sigma):
    clean = head((64, 64, 64))
    assert noise_level(clean + noise(clean.shape, sigma), WHITE, ANATOMY) == pytest.approx(sigma, rel=0.1)


def test_what_anatomy_has_at_least_is_no_noise():
    """It grows with the voxel that is resolved, however small the stored one is, and across slices with none."""
    cuts = {width: (AxisPSF("kspace", width),) * 3 for width in (1.0, 2.0)}
    assert anatomy(cuts[1.0], MM) == pytest.approx(ANATOMY)
    assert anatomy(cuts[2.0], (2.0, 2.0, 2.0)) == pytest.approx(ANATOMY * 2**1.3)
    assert anatomy(cuts[1.0], (0.5, 1.0, 1.0)) == pytest.approx(ANATOMY)
    for kind in ("gaussian", "supergaussian"):
        slices = (*cuts[1.0][:2], AxisPSF(kind, 5.0))
        assert anatomy(slices, (2.0, 2.0, 5.0)) == pytest.approx(ANATOMY * 2**1.3)
    blurred = (AxisPSF("gaussian", 2.0),) * 3
    assert anatomy(blurred, (2.0, 2.0, 2.0)) == pytest.approx(ANATOMY * 2**1.3)
    scan = head() + noise((48, 40, 36), 0.02)
    assert noise_level(scan, WHITE, 0.015) < noise_level(scan, WHITE, 0.006)
    assert noise_level(scan, WHITE, 1.0) == 0.0


def test_air_tells_nothing():
    assert noise_level(noise((32, 32, 32), 0.02), WHITE, ANATOMY) is None
    assert noise_level(noise((3, 64, 64), 0.02) + 0.5, WHITE, ANATOMY) is None


def test_bands_of_a_scan():
    cut_twice, full, slices = AxisPSF("kspace", 2.0), AxisPSF("kspace", 1.0), AxisPSF("gaussian", 5.0)
    assert noise_bands((cut_twice, full, slices), (1.0, 1.0, 4.0)) == (0.25, 0.5, 0.5)


def test_volumes_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape, found"):
        wiener(np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 5), np.float32), 1.0, WHITE)


def test_without_the_core_little_more_than_the_volumes_is_held():
    scan = noise((24, 90, 80), 1.0)
    tracemalloc.start()
    module._wiener(scan, scan, cosine_shares(WHITE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 1.5 * scan.nbytes + 10**7  # two with their margins, the result; then what a few lines take
