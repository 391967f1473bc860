"""Consistency: reaches chi^2 = 1 and stops, equals the dense solution, leaves what is within the noise alone."""

import numpy as np
import pytest
import torch

from mrisr import grid as grids
from mrisr.errors import UsageError
from mrisr.ops.resample import apply_axes
from mrisr.physics.consistency import correct, residual_chi2
from mrisr.physics.degrade import ForwardModel, coarse_grid, rician, start_matrices
from mrisr.physics.psf import AxisPSF


def setting(shape=(32, 30, 28), factor=(2, 2, 2), kinds=("kspace",) * 3, seed=0):
    hr = grids.Grid(shape, np.eye(4))
    lr = coarse_grid(hr, factor)
    psf = tuple(AxisPSF(k, float(f)) for k, f in zip(kinds, factor))
    model = ForwardModel.between(shape, (1, 1, 1), lr.shape, lr.voxel_size, psf)
    generator = torch.Generator().manual_seed(seed)
    truth = 0.6 + 0.15 * torch.randn(shape, generator=generator)
    start = start_matrices(lr.shape, lr.voxel_size, shape, (1, 1, 1), psf)
    return model, truth, generator, start


@pytest.mark.parametrize(
    "factor,kinds",
    [((2, 2, 2), ("kspace",) * 3), ((1, 1, 4), ("kspace", "kspace", "gaussian")), ((1.5, 2, 3), ("gaussian",) * 3)],
)
def test_the_residual_falls_to_the_noise_and_not_below(factor, kinds):
    model, truth, generator, _ = setting(factor=factor, kinds=kinds)
    sigma = 0.02
    lr = rician(model.forward(truth), sigma, generator)
    wrong = truth + 0.1 * torch.randn(truth.shape, generator=generator)
    result = correct(wrong, lr, model, sigma)
    assert result.applied and result.chi2_before > 1.5
    assert 0.9 <= result.chi2_after <= 1.05
    assert result.chi2_after == pytest.approx(residual_chi2(result.image, lr, model, sigma))


def test_within_the_noise_nothing_is_touched():
    model, truth, generator, _ = setting()
    sigma = 0.05
    lr = rician(model.forward(truth), 0.8 * sigma, generator)
    result = correct(truth, lr, model, sigma)
    assert not result.applied and result.image is truth and result.chi2_after == result.chi2_before < 1


def test_clean_input_with_the_right_operator_gets_closer_to_the_truth():
    model, truth, generator, start = setting()
    lr = model.forward(truth)
    blurred = 0.9 * apply_axes(lr, start) + 0.06
    result = correct(blurred, lr, model, 0.0)
    assert (result.image - truth).norm() < (blurred - truth).norm()
    assert result.chi2_after <= 1.01


def test_it_is_the_dense_minimum_norm_solution():
    model, truth, generator, _ = setting(shape=(8, 7, 6), factor=(2, 1, 1.5), kinds=("gaussian", "kspace", "kspace"))
    truth = truth.double().abs() + 0.5
    lr = model.forward(truth)
    x = truth + 0.2 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    result = correct(x, lr, model, 0.03)
    full = [np.eye(n) if m is None else m for m, n in zip(model.matrices, model.hr_shape)]
    dense = np.kron(np.kron(full[0], full[1]), full[2])
    residual = (lr - model.forward(x)).numpy().ravel()
    moved = (result.image - x).numpy().ravel()
    # For some lambda, the move must be H^T (H H^T + lambda I)^-1 r: find lambda from its norm, compare the vector.
    best = min(
        np.abs(dense.T @ np.linalg.solve(dense @ dense.T + lam * np.eye(len(residual)), residual) - moved).max()
        for lam in np.exp(np.linspace(np.log(1e-4), np.log(1e4), 4001))
    )
    assert best < 1e-3 * np.abs(moved).max() * 5


def test_bad_noise_is_named():
    model, truth, _, _ = setting()
    with pytest.raises(UsageError, match="noise_sigma"):
        correct(truth, model.forward(truth), model, float("nan"))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_native_sums_are_those_of_float64(threads):
    """Whatever the thread count, and where nothing counts."""
    model, truth, generator, _ = setting(shape=(33, 30, 29))
    lr = model.forward(truth)
    lr[2:5] = 0.1  # no tissue
    x = truth + 0.1 * torch.randn(truth.shape, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, nothing = residual_chi2(x, lr, model, 0.05), residual_chi2(x, 0.1 * lr, model, 0.05)
    finally:
        torch.set_num_threads(before)
    left = (lr.double() - model.forward(x).double())[lr > 0.15]
    assert found == pytest.approx(float(left.square().mean()) / 0.05**2, rel=1e-6) and nothing == 0.0
