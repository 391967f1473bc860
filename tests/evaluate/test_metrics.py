"""Each metric against its definition written out voxel by voxel in float64, and against what it must do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mrisr.errors import InputError
from mrisr.evaluate import metrics
from mrisr.evaluate.masks import erode, head_mask


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    reference = 100 + 30 * np.cumsum(rng.standard_normal((14, 12, 17)), axis=0)
    reference = np.abs(reference).astype(np.float32)
    image = reference + 12 * rng.standard_normal(reference.shape).astype(np.float32)
    mask = rng.random(reference.shape) < 0.6
    return reference, image, mask


def mirrored(volume, radius):
    return np.pad(volume.astype(np.float64), radius, mode="symmetric")


def gaussian(sigma, radius):
    g = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return g / g.sum()


def ssim_by_definition(x, y, mask, span):
    radius = 5
    g = gaussian(1.5, radius)
    weight = g[:, None, None] * g[None, :, None] * g[None, None, :]
    px, py = mirrored(x, radius), mirrored(y, radius)
    values = []
    for i, j, k in np.argwhere(mask):
        a = px[i : i + 11, j : j + 11, k : k + 11]
        b = py[i : i + 11, j : j + 11, k : k + 11]
        ma, mb = (weight * a).sum(), (weight * b).sum()
        va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
        cov = (weight * (a - ma) * (b - mb)).sum()
        c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
        values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


def hfen_by_definition(x, y, mask):
    radius, sigma = 7, 1.5
    t = np.arange(-radius, radius + 1)
    g = gaussian(sigma, radius)
    d = g * (t**2 / sigma**4 - 1 / sigma**2)
    d -= d.mean()
    kernel = sum(np.einsum("i,j,k->ijk", *(d if axis == other else g for other in range(3))) for axis in range(3))

    def log(volume):
        padded = mirrored(volume, radius)
        return np.array([(kernel * padded[i : i + 15, j : j + 15, k : k + 15]).sum() for i, j, k in np.argwhere(mask)])

    return np.linalg.norm(log(y) - log(x)) / np.linalg.norm(log(x))


def test_psnr_of_known_noise():
    rng = np.random.default_rng(0)
    reference = np.full((40, 40, 40), 1000.0)
    image = reference + rng.normal(0, 10, reference.shape)
    assert metrics.psnr(reference, image, data_range=1000) == pytest.approx(40.0, abs=0.05)


def test_psnr_counts_only_the_mask(pair):
    reference, image, mask = pair
    error = image.astype(np.float64) - reference
    expected = 20 * np.log10(200 / np.sqrt(np.mean(error[mask] ** 2)))
    assert metrics.psnr(reference, image, mask, 200) == pytest.approx(expected, abs=1e-9)
    image = np.where(mask, image, 1e6)
    assert metrics.psnr(reference, image, mask, 200) == pytest.approx(expected, abs=1e-9)


def test_ssim_matches_the_definition(pair):
    reference, image, mask = pair
    span = metrics.data_range(reference)
    expected = ssim_by_definition(reference, image, mask, span)
    assert metrics.ssim3d(reference, image, mask) == pytest.approx(expected, abs=2e-6)


def test_ssim_in_a_bounding_box_equals_the_whole(pair):
    reference, image, _ = pair
    mask = np.zeros(reference.shape, bool)
    mask[5:8, 4:9, 10:13] = True
    expected = ssim_by_definition(reference, image, mask, 400.0)
    assert metrics.ssim3d(reference, image, mask, 400.0) == pytest.approx(expected, abs=2e-6)


def test_hfen_matches_the_definition(pair):
    reference, image, mask = pair
    assert metrics.hfen(reference, image, mask) == pytest.approx(hfen_by_definition(reference, image, mask), rel=1e-5)


def test_nmi_matches_histogram_entropies(pair):
    reference, image, mask = pair
    span = metrics.data_range(reference)
    edges = np.linspace(0, span, 65)
    edges[0], edges[-1] = -np.inf, np.inf
    joint = np.histogram2d(reference[mask].astype(float), image[mask].astype(float), bins=[edges, edges])[0]
    joint /= joint.sum()

    def entropy(p):
        return -sum(v * math.log(v) for v in np.ravel(p) if v > 0)

    expected = (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint)
    assert metrics.nmi(reference, image, mask) == pytest.approx(expected, rel=1e-4)


def test_perfect_images(pair):
    reference, _, mask = pair
    assert metrics.psnr(reference, reference, mask) == math.inf
    assert metrics.ssim3d(reference, reference, mask) == pytest.approx(1, abs=1e-6)
    assert metrics.hfen(reference, reference, mask) == 0
    assert metrics.nmi(reference, reference, mask) == pytest.approx(2, abs=1e-9)
    curve = metrics.fsc(reference, reference, mask)
    assert np.nanmin(curve.correlation) == pytest.approx(1, abs=1e-6)


def test_brightness_is_not_forgiven(pair):
    reference, _, mask = pair
    assert metrics.psnr(reference, 1.1 * reference, mask) < 30
    assert metrics.ssim3d(reference, 1.1 * reference, mask) < 0.9999


def test_scale_of_the_units_does_not_matter(pair):
    reference, image, mask = pair
    for metric in (metrics.psnr, metrics.ssim3d, metrics.hfen, metrics.nmi):
        assert metric(reference / 512, image / 512, mask) == pytest.approx(metric(reference, image, mask), rel=1e-4)


def test_fsc_falls_where_an_image_holds_nothing():
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((48, 48, 48)).astype(np.float32)
    spectrum = np.fft.fftn(reference)
    f = np.abs(np.fft.fftfreq(48))
    radius = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + f[None, None, :] ** 2)
    noise = np.fft.fftn(rng.standard_normal(reference.shape))
    image = np.fft.ifftn(np.where(radius < 0.25, spectrum, noise)).real.astype(np.float32)
    curve = metrics.fsc(reference, image)
    assert curve.correlation[curve.frequency < 0.4].min() > 0.95
    assert np.abs(curve.correlation[(curve.frequency > 0.6)]).max() < 0.2
    assert metrics.fsc_gain(reference, reference, image, band=(0.25, 0.25, 0.25)) > 0.5


def test_fsc_beyond_the_band_ignores_the_band():
    rng = np.random.default_rng(2)
    reference = rng.standard_normal((32, 32, 32)).astype(np.float32)
    whole = metrics.fsc(reference, reference)
    beyond = metrics.fsc(reference, reference, band=(0.25, 0.5, 0.5))
    inside = metrics.fsc(reference, reference, band=(0.5, 0.5, 0.5))
    assert 0 < beyond.coefficients.sum() < whole.coefficients.sum()
    assert inside.coefficients.sum() == 0 and math.isnan(inside.area)


@pytest.mark.parametrize("spoil", ["shape", "nan", "empty mask", "zero"])
def test_bad_input_is_named(pair, spoil):
    reference, image, mask = pair
    if spoil == "shape":
        image = image[1:]
    elif spoil == "nan":
        image = np.where(image > 200, np.nan, image)
    elif spoil == "empty mask":
        mask = np.zeros_like(mask)
    else:
        reference = reference * 0
    with pytest.raises(InputError):
        metrics.psnr(reference, image, mask)


def head(shape=(60, 70, 50)):
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return np.sqrt((grid**2).sum(0))


def test_head_mask_fills_the_head_and_nothing_else():
    rng = np.random.default_rng(0)
    radius = head()
    truth = radius < 0.7
    volume = np.where(truth, 100.0, 0.0)
    volume[radius < 0.3] = 5.0  # dark ventricles
    volume[2:5, 2:5, 2:5] = 90.0  # a bright thing beside the head
    volume = np.hypot(volume + rng.normal(0, 4, volume.shape), rng.normal(0, 4, volume.shape))
    mask = head_mask(volume)
    assert mask[truth].mean() > 0.99
    assert mask[~truth].mean() < 0.03
    assert not mask[:6, :6, :6].any()


def test_head_mask_of_a_crop_without_air_is_nearly_all():
    rng = np.random.default_rng(0)
    volume = np.where(rng.random((24, 24, 24)) < 0.5, 80.0, 120.0) + rng.normal(0, 3, (24, 24, 24))
    assert head_mask(volume).mean() > 0.99


def test_erosion_does_not_eat_the_border_of_the_array():
    mask = np.ones((10, 10, 10), bool)
    mask[5, 5, 5] = False
    assert erode(mask, (1, 1, 1)).sum() == 1000 - 27
