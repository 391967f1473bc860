"""The per-axis matrices: exactness on ramps and band-limited signals, agreement with scipy, adjoints."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from mrisr import grid as grids
from mrisr.errors import UsageError
from mrisr.ops.resample import apply_axes, bspline_matrix, fourier_matrix, interpolation_matrix, transposed

FACTORS = [1.3, 1.5, 2.0, 2.7, 1 / 1.5, 1 / 0.7, 1 / 3.3]


@pytest.mark.parametrize("order", [1, 3, 5])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_ramp_in_world_coordinates_stays_the_same_ramp_to_the_border(order, factor):
    source = grids.Grid((31, 24, 17), np.diag([1.0, 1.2, 0.9, 1.0]))
    target = grids.plan(source, factor=factor)

    def ramp(grid):
        index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
        world = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        return world @ np.array([1.0, -2.0, 0.5]) + 3.0

    ratios = grids.ratios(source, target)
    matrices = [
        bspline_matrix(n, grids.axis_positions(n, m, r), order) for n, m, r in zip(source.shape, target.shape, ratios)
    ]
    out = apply_axes(torch.from_numpy(ramp(source)), matrices).numpy()
    assert np.abs(out - ramp(target)).max() < 1e-4


@pytest.mark.parametrize("factor", FACTORS)
def test_a_band_limited_signal_is_interpolated_exactly_by_fourier(factor):
    n, ratio = 40, 1 / factor
    m = int(np.floor(n * factor + 0.5 + 1e-4))
    if ratio > 1:  # to a coarser grid: keep the signal below what that grid holds
        frequencies = [1, 3]
    else:
        frequencies = [1, 7, 18]

    def signal(position):
        return sum(np.cos(np.pi * k * (position + 0.5) / n + 0.0) * (k + 1) for k in frequencies)

    positions = grids.axis_positions(n, m, ratio)
    out = interpolation_matrix(n, m, ratio, "fourier") @ signal(np.arange(n))
    assert np.abs(out - signal(positions)).max() < 1e-9


@pytest.mark.parametrize("factor", [1.5, 2.0, 1.3, 1.7])
@pytest.mark.parametrize("kind", ["bspline", "fourier"])
def test_a_band_limited_volume_comes_back_from_a_finer_grid(factor, kind):
    """To 1e-4 inside; where the finer field of view is a part of a voxel longer, or splines end, borders differ."""
    n, kept = 36, 12
    m = int(np.floor(n * factor + 0.5 + 1e-4))
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.randn(kept, kept, kept, generator=generator, dtype=torch.float64)
    basis = np.cos(np.pi * np.outer(np.arange(n) + 0.5, np.arange(kept)) / n)
    x = apply_axes(spectrum, [basis] * 3)
    fine = apply_axes(x, [interpolation_matrix(n, m, 1 / factor, "fourier")] * 3)
    positions = grids.axis_positions(m, n, factor)
    back = apply_axes(fine, [(bspline_matrix if kind == "bspline" else fourier_matrix)(m, positions)] * 3)
    error = (back - x).abs() / x.abs().max()
    if kind == "fourier" and abs(m / factor - n) < 1e-9:
        assert float(error.max()) < 1e-9
    assert float(error[8:-8, 8:-8, 8:-8].max()) < 1e-4


@pytest.mark.parametrize("order", [1, 3])
def test_inside_it_is_scipys_map_coordinates(order):
    x = np.random.default_rng(1).random((20, 22, 18))
    targets = [30, 33, 27]
    positions = [grids.axis_positions(n, m, 1 / 1.5) for n, m in zip(x.shape, targets)]
    ours = apply_axes(torch.from_numpy(x), [bspline_matrix(n, p, order) for n, p in zip(x.shape, positions)])
    theirs = scipy.ndimage.map_coordinates(x, np.meshgrid(*positions, indexing="ij"), order=order, mode="mirror")
    inner = (slice(12, -12),) * 3
    assert np.abs(ours.numpy() - theirs)[inner].max() < (1e-12 if order == 1 else 2e-3)


@pytest.mark.parametrize("build", [lambda p: bspline_matrix(15, p, 5), lambda p: fourier_matrix(15, p)])
def test_constant_in_constant_out(build):
    matrix = build(grids.axis_positions(15, 23, 15 / 23))
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-12


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_transpose_is_the_adjoint(dtype, tolerance):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 14, 15, 16, generator=generator, dtype=dtype)
    y = torch.randn(2, 9, 21, 16, generator=generator, dtype=dtype)
    matrices = [bspline_matrix(14, grids.axis_positions(14, 9, 1.5), 5),
                fourier_matrix(15, grids.axis_positions(15, 21, 0.7)), None]  # fmt: skip
    forward = (apply_axes(x, matrices) * y).double().sum()
    backward = (x * apply_axes(y, transposed(matrices))).double().sum()
    size = (apply_axes(x, matrices).double().norm() * y.double().norm()).item()
    assert abs(forward - backward).item() / size < tolerance


def test_gradients_flow():
    x = torch.randn(6, 7, 8, dtype=torch.float64, requires_grad=True)
    matrices = [bspline_matrix(n, grids.axis_positions(n, 9, n / 9), 3) for n in (6, 7, 8)]
    assert torch.autograd.gradcheck(lambda v: apply_axes(v, matrices), (x,))


def test_bad_arguments_are_named():
    with pytest.raises(UsageError, match="order must be one of"):
        bspline_matrix(8, np.arange(4.0), 2)
    with pytest.raises(UsageError, match="takes 8 samples"):
        apply_axes(torch.zeros(4, 5, 6), [np.zeros((2, 8)), None, None])
    with pytest.raises(UsageError, match="'bspline' or 'fourier'"):
        interpolation_matrix(8, 16, 0.5, "cubic")
