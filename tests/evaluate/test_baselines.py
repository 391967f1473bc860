"""The yardsticks themselves: equal to their definitions, exact where they must be, and as good as they are
known to be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from mrisr import grid as grids
from mrisr.errors import UsageError
from mrisr.evaluate.baselines import BASELINES, LinearRegression, cubic, trilinear, zerofill
from mrisr.evaluate.cases import CASES, Subject, make_trial
from mrisr.grid import Grid


def plain_map_coordinates(volume, source, target, order):
    """Coordinates through both affines, voxel by voxel: the definition, with nothing separable about it."""
    index = np.indices(target.shape).reshape(3, -1)
    index = np.vstack([index, np.ones(index.shape[1])])
    where = (np.linalg.inv(source.affine) @ target.affine @ index)[:3]
    return map_coordinates(volume.astype(np.float64), where, order=order, mode="nearest").reshape(target.shape)


def oblique(shape, voxel):
    turn, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.asarray(voxel)
    affine[:3, 3] = [-20, 11, 5]
    return Grid(shape, affine)


@pytest.mark.parametrize("order, method", [(1, trilinear), (3, cubic)])
@pytest.mark.parametrize("voxel", [1.0, 0.9, (1.25, 0.7, 3.0), (2, 1, 0.5)])
def test_equal_to_plain_map_coordinates(order, method, voxel):
    rng = np.random.default_rng(0)
    source = oblique((11, 14, 9), (1.5, 1.0, 2.0))
    target = grids.plan(source, voxel_size=voxel)
    volume = rng.standard_normal(source.shape).astype(np.float32)
    expected = plain_map_coordinates(volume, source, target, order)
    np.testing.assert_allclose(method(volume, source, target), expected, atol=3e-6)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_constant_stays_constant(name):
    source = Grid((9, 12, 10), np.diag([1.3, 1.0, 2.0, 1.0]))
    target = grids.plan(source, voxel_size=0.7)
    out = BASELINES[name](np.full(source.shape, 7.0, np.float32), source, target)
    assert out.dtype == np.float32 and out.shape == target.shape
    np.testing.assert_allclose(out, 7, atol=2e-5)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_same_grid_changes_nothing(name):
    source = Grid((9, 12, 10), np.eye(4))
    volume = np.random.default_rng(0).standard_normal(source.shape).astype(np.float32)
    np.testing.assert_array_equal(BASELINES[name](volume, source, source), volume)


def smooth_texture(shape, seed):
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfftn(rng.standard_normal(shape))
    f = np.sqrt(
        sum(
            g**2 for g in np.meshgrid(*[np.fft.fftfreq(n) for n in shape[:2]], np.fft.rfftfreq(shape[2]), indexing="ij")
        )
    )
    volume = np.fft.irfftn(spectrum / (0.05 + f) ** 2.5, s=shape, axes=(0, 1, 2))
    return (500 + 100 * volume / volume.std()).astype(np.float32)


def subject(seed, shape=(36, 36, 36)):
    return Subject(f"texture{seed}", smooth_texture(shape, seed), Grid(shape, np.eye(4)), np.ones(shape, bool))


def error(trial, method):
    image = method(trial.scan, trial.coarse, trial.fine)
    inner = (slice(4, -4),) * 3
    return float(np.mean((image - trial.reference)[inner] ** 2))


def test_zerofill_beats_cubic_beats_trilinear_on_cut_kspace():
    trial = make_trial(subject(0), CASES["iso2"])
    assert error(trial, zerofill) < error(trial, cubic) < error(trial, trilinear)


@pytest.mark.parametrize("case", ["iso2", "iso1p5", "thick4"])
def test_linear_regression_learns(case):
    train = [make_trial(subject(seed), CASES[case]) for seed in (1, 2)]
    model = LinearRegression(max_samples_per_phase=4000)
    model.fit([(t.scan, t.coarse, t.reference, t.fine, t.mask) for t in train])
    trial = make_trial(subject(3), CASES[case])
    assert error(trial, model) < error(trial, cubic)


def test_linear_regression_predicts_what_its_features_say():
    """Prediction folds "minus the centre" into the weights; it must equal features times weights."""
    trial = make_trial(subject(1, (16, 16, 16)), CASES["iso2"])
    model = LinearRegression(max_samples_per_phase=500)
    model.fit([(trial.scan, trial.coarse, trial.reference, trial.fine, trial.mask)])
    quint = BASELINES["quintic"](trial.scan, trial.coarse, trial.fine)
    padded = model._padded(quint, trial.scan, trial.coarse, trial.fine)
    for phase, index, _ in model._phases(trial.coarse, trial.fine):
        weights = model._weights[phase]
        features = model._features(padded, index, np.arange(np.prod([len(i) for i in index])))
        expected = (features @ weights).reshape([len(i) for i in index])
        np.testing.assert_allclose(model._predict(padded, index, weights), expected, atol=1e-3)


def test_linear_regression_refuses_another_factor():
    trial = make_trial(subject(1, (16, 16, 16)), CASES["iso2"])
    model = LinearRegression(max_samples_per_phase=200)
    with pytest.raises(UsageError, match="fit"):
        model(trial.scan, trial.coarse, trial.fine)
    model.fit([(trial.scan, trial.coarse, trial.reference, trial.fine, trial.mask)])
    other = make_trial(subject(1, (16, 16, 24)), CASES["thick4"])
    with pytest.raises(UsageError, match="trained for"):
        model(other.scan, other.coarse, other.fine)
