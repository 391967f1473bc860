"""Gradient nonlinearity against closed forms, scipy and itself: displacement to 0.001 mm, determinant to 0.001."""

import dataclasses
from math import factorial, sqrt

import numpy as np
import pytest
import torch
from scipy.special import lpmv

from mrisr.errors import InputError, MrisrWarning, UsageError
from mrisr.grid import Grid, plan
from mrisr.physics import coils, gradnl, harmonics, smooth
from mrisr.volume import Volume

RADIUS = 250.0
GRAD = """#*[ Script ****************************************************************\\
#
# Description : made up, belongs to no coil
#
#****************************************************************************/
 flagship 000, Gradientsystem None , Gx,y,z = 40 mT/m
 win_low = 0, win_high = 0, win_algo = 0, win_dummy = 2;
 0.250 m = R0, lnorm = 4? A(1,0) = B(1,1) = A(1,1) = 0;
 0 = CoSyMode
 Expansion in Spherical Harmonics
 ================================

 NO.  TYPE             SPECTRUM                 AXIS

  1 A( 3, 0)          -0.2500                   z
101 A( 3, 1)          -0.2200                   x
102 A( 5, 1)           0.0500                   x
201 B( 3, 3)           0.0300                   y
"""


def oblique(shape=(12, 14, 10), spacing=(14.0, 13.0, 15.0)) -> Grid:
    """A grid about the isocentre whose axes are turned, the first one mirrored."""
    turn = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([-spacing[0], spacing[1], spacing[2]])
    affine[:3, 3] = (5, -8, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def closed_form(x, y, z):
    """Displacement along L, A, F of GRAD at L-A-F coordinates, mm, written out by hand."""
    r2 = x * x + y * y + z * z
    along_z = -0.25 * (5 * z**3 - 3 * z * r2) / 2 / RADIUS**2
    p31 = sqrt(7 * factorial(2) / (2 * factorial(4))) * 1.5 * x * (5 * z * z - r2)
    p51 = sqrt(11 * factorial(4) / (2 * factorial(6))) * 15 / 8 * x * (21 * z**4 - 14 * z * z * r2 + r2 * r2)
    along_x = -0.22 * p31 / RADIUS**2 + 0.05 * p51 / RADIUS**4
    p33 = sqrt(7 / (2 * factorial(6))) * 15 * (3 * x * x * y - y**3)
    return along_x, 0.03 * p33 / RADIUS**2, along_z


@pytest.fixture
def coil(tmp_path):
    path = tmp_path / "made_up.grad"
    path.write_text(GRAD)
    return coils.read(path)


def blob(grid: Grid, centre=(40.0, 35.0, -45.0), width=15.0) -> torch.Tensor:
    points = smooth.world(grid.affine, [np.arange(n) for n in grid.shape])
    apart = points - torch.tensor(centre, dtype=torch.float64)[:, None]
    return torch.exp(-0.5 * (apart / width).square().sum(0)).reshape(grid.shape)


def test_harmonics_are_those_of_scipy():
    points = 0.8 * torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y, z = points.numpy()
    r, phi = np.sqrt(x * x + y * y + z * z), np.arctan2(y, x)
    degree = 11
    values = harmonics.evaluate(points, np.eye(len(harmonics.terms(degree))), degree).numpy()
    for (n, m, kind), found in zip(harmonics.terms(degree), values):
        norm = (-1) ** m * sqrt((2 * n + 1) * factorial(n - m) / (2 * factorial(n + m))) if m else 1.0
        expected = norm * r**n * lpmv(m, n, z / r) * (np.sin if kind else np.cos)(m * phi)
        assert np.abs(found - expected).max() <= 1e-12 * max(1.0, np.abs(expected).max()), (n, m, kind)


def test_gradients_are_those_of_autograd():
    points = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    coil = coils.random_coil(np.random.default_rng(0))
    moved = coil.displacement_at(150 * points)
    for a in range(3):
        expected = torch.autograd.grad(moved[a].sum(), points, retain_graph=True)[0] / 150
        found = coil.gradient_at(150 * points.detach())[a]
        assert (found - expected).abs().max() < 1e-12


def test_displacement_and_determinant_of_a_coefficient_file_are_the_closed_form(coil):
    grid = oblique()
    warp = gradnl.correction(coil, grid)
    ras = smooth.world(grid.affine, [np.arange(n) for n in grid.shape]).requires_grad_()
    lai = ras * torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
    expected = torch.stack(closed_form(*lai)) * torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
    assert coil.radius == RADIUS and 5.0 < float(expected.detach().abs().max()) < 50.0
    assert (warp.offset.reshape(3, -1) - expected).abs().max() < 1e-3
    rows = [torch.autograd.grad(expected[a].sum(), ras, retain_graph=True)[0] for a in range(3)]
    determinant = torch.linalg.det(torch.eye(3) + torch.stack(rows).permute(2, 0, 1))
    assert float((determinant - 1).abs().max()) > 0.1
    assert (warp.gain.flatten() - determinant).abs().max() < 1e-3


def test_simulation_is_the_inverse_of_correction(coil):
    grid = oblique((24, 26, 22), (7.0, 7.0, 7.5))
    there = gradnl.simulation(coil, grid, dtype=torch.float64)
    points = smooth.world(grid.affine, [np.arange(n) for n in grid.shape])
    landed = points + there.offset.reshape(3, -1)
    assert (landed + coil.displacement_at(landed) - points).norm(dim=0).max() < 1e-3
    back = gradnl.correction(coil, grid, dtype=torch.float64)
    image = blob(grid)
    assert (there.forward(image) - image).abs().max() > 0.02
    assert (back.forward(there.forward(image)) - image).abs().max() < 2e-3


def test_intensity_follows_volume(coil):
    """What is displaced is neither made nor lost: the sum over space stays."""
    grid = oblique((38, 40, 36), (5.0, 5.0, 5.0))
    image = blob(grid, (5.0, -8.0, -50.0), 11.0)
    distorted = gradnl.simulation(coil, grid, dtype=torch.float64).forward(image)
    assert float(distorted.sum()) == pytest.approx(float(image.sum()), rel=1e-3)
    plain = gradnl.simulation(coil, grid, dtype=torch.float64, intensity=False).forward(image)
    assert abs(float(plain.sum() / image.sum()) - 1) > 0.01


def test_correction_and_change_of_grid_are_one_interpolation(coil):
    source = oblique((30, 32, 28), (6.0, 6.0, 6.0))
    target = plan(source, voxel_size=4.3)
    distorted = gradnl.simulation(coil, source, dtype=torch.float64).forward(blob(source))
    found = gradnl.correction(coil, source, target, dtype=torch.float64).forward(distorted)
    assert (found - blob(target)).abs().max() < 5e-3


def test_a_scan_corrected_within_its_slices_gets_the_rest(coil):
    """Simulate the scanner's own 2D correction from the closed mapping, then finish it."""
    grid = oblique((36, 38, 34), (5.0, 5.0, 5.0))
    normal = np.linalg.inv(grid.affine[:3, :3])[2]
    project = torch.from_numpy(np.eye(3) - np.outer(normal, normal) / (normal @ normal))
    points = smooth.world(grid.affine, [np.arange(n) for n in grid.shape])
    within = project @ coil.displacement_at(points)
    gradient = torch.einsum("ab,bcp->acp", project, coil.gradient_at(points))
    flat = gradnl.Warp(grid, grid, within.reshape(3, *grid.shape), gradnl.determinant(gradient).reshape(grid.shape))
    image = blob(grid)
    scan = flat.forward(gradnl.simulation(coil, grid, dtype=torch.float64).forward(image))
    rest = gradnl.correction(coil, grid, done="2D", slice_axis=2, dtype=torch.float64)
    assert (scan - image).abs().max() > 0.02
    assert (rest.forward(scan) - image).abs().max() < 4e-3
    twice = gradnl.correction(coil, grid, dtype=torch.float64)
    assert (twice.forward(scan) - image).abs().max() > 0.02
    untouched = gradnl.correction(coil, grid, done="3D", dtype=torch.float64)
    assert (untouched.forward(scan) - scan).abs().max() < 1e-12


@pytest.mark.parametrize("make", [gradnl.correction, gradnl.simulation])
def test_adjoint_batch_and_gradients(coil, make):
    source, target = oblique(), plan(oblique(), factor=1.3)
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        warp = make(coil, source, target, dtype=dtype)
        x = torch.randn(2, 1, *source.shape, generator=generator, dtype=dtype)
        y = torch.randn(2, 1, *target.shape, generator=generator, dtype=dtype)
        hx, hty = warp.forward(x), warp.adjoint(y)
        difference = (hx.double() * y.double()).sum() - (x.double() * hty.double()).sum()
        assert abs(difference) / (hx.double().norm() * y.double().norm()) < tolerance
    other = make(coils.random_coil(np.random.default_rng(4)), source, target, dtype=torch.float64)
    both = gradnl.Warp.stacked([warp, other])
    assert torch.allclose(both.forward(x)[1], other.forward(x[1]), atol=1e-12)
    x.requires_grad_()
    assert torch.autograd.grad(warp.forward(x).square().sum(), x)[0].abs().max() > 0


def test_a_displacement_field_does_what_its_coil_does(coil):
    grid = oblique((40, 42, 38), (5.0, 5.0, 5.0))
    of_coil = gradnl.correction(coil, grid, dtype=torch.float64)
    volume = Volume(of_coil.offset.permute(1, 2, 3, 0).numpy(), grid.affine, name="d.nii")
    stored = gradnl.DisplacementField.from_volume(volume)
    finer = plan(grid, voxel_size=4.0)
    a, b = (gradnl.correction(d, grid, finer, dtype=torch.float64) for d in (coil, stored))
    inside = (slice(4, -4),) * 3
    assert (a.offset - b.offset)[(slice(None), *inside)].abs().max() < 1e-3
    assert (a.gain - b.gain)[inside].abs().max() < 1e-3
    points = smooth.world(grid.affine, [[8, 20, 31], [10, 30], [9, 25]])
    u = gradnl._inverse(stored, points)[:3]
    assert (u + coil.displacement_at(points + u)).abs().max() < 2e-3
    with pytest.raises(InputError, match=r"expected a displacement field \[X, Y, Z, 3\]"):
        gradnl.DisplacementField.from_volume(Volume(volume.data[..., 0], grid.affine))
    with pytest.raises(InputError, match="does not cover the field of view"):
        gradnl.correction(stored, oblique((44, 42, 38), (6.0, 5.0, 5.0)))


def test_a_moved_table_moves_the_field(coil):
    moved = dataclasses.replace(coil, isocentre=(3.0, -7.0, 20.0))
    points = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 60
    centre = torch.tensor(moved.isocentre, dtype=torch.float64)[:, None]
    assert torch.allclose(moved.displacement_at(points + centre), coil.displacement_at(points), atol=1e-10)
    assert torch.allclose(moved.gradient_at(points + centre), coil.gradient_at(points), atol=1e-12)


def test_guidance_has_four_channels_in_target_voxels(coil):
    grid = oblique()
    channels, warp = gradnl.guidance(coil, grid), gradnl.correction(coil, grid)
    assert channels.shape == (4, *grid.shape)
    assert torch.allclose(channels[3].exp(), warp.gain, atol=1e-5)
    mm = torch.einsum("ab,bxyz->axyz", torch.from_numpy(grid.affine[:3, :3].copy()).float(), channels[:3])
    assert torch.allclose(mm, warp.offset, atol=1e-4)


def test_random_coils_have_the_stated_size_and_repeat():
    for seed in range(2):
        first, again = (coils.random_coil(np.random.default_rng(seed), 4.0) for _ in range(2))
        assert np.array_equal(first.weights, again.weights)
        sphere = torch.randn(3, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        reached = first.displacement_at(110 * sphere / sphere.norm(dim=0)).norm(dim=0).max()
        assert float(reached) == pytest.approx(4.0, rel=0.05)
        grid = oblique((8, 9, 8), (24.0, 24.0, 24.0))
        assert gradnl.simulation(first, grid).gain.isfinite().all()


def test_large_displacements_and_folds_are_refused():
    grid = oblique()
    with pytest.raises(InputError, match="displaces by .* expected at most 50 mm"):
        gradnl.correction(coils.coil(RADIUS, {("A", 3, 0, "z"): 3.0}, "wrong.grad"), grid)
    with pytest.raises(InputError, match="wrong.grad: displaces by"):
        gradnl.simulation(coils.coil(RADIUS, {("A", 3, 0, "z"): 3.0}, "wrong.grad"), grid)
    steep = coils.coil(120.0, {("A", 3, 0, "z"): -1.5}, "steep.grad")
    near = oblique(spacing=(9.0, 9.0, 9.0))
    with pytest.raises(InputError, match="steep.grad: the mapping has no inverse"):
        gradnl.simulation(steep, near)
    with pytest.warns(MrisrWarning, match="folds over"):
        gradnl.correction(steep, near)


def test_what_the_scanner_did_is_read_from_the_metadata():
    cases = [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}, "none", "ND"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM", "DIS2D"]}, "2D", "DIS2D"),
        ({"ImageType": "DERIVED\\PRIMARY\\M\\DIS3D\\DIS2D"}, "3D", "DIS3D"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, "none", "neither"),
        ({"ImageType": ["ORIGINAL", "PRIMARY"], "Manufacturer": "GE MEDICAL SYSTEMS"}, "unknown", "nothing"),
        ({"NonlinearGradientCorrection": True}, "3D", "true"),
        ({"NonlinearGradientCorrection": False}, "none", "false"),
        ({}, "unknown", "nothing"),
        (None, "unknown", "nothing"),
    ]
    for meta, state, word in cases:
        found, why = gradnl.scanner_correction(meta)
        assert found == state and word in why, meta
    gradnl.check_vendor("a.grad", {"Manufacturer": "Siemens Healthineers"})
    with pytest.raises(InputError, match="a.grad: coefficients of a Siemens coil, but the scan is from .Philips"):
        gradnl.check_vendor("a.grad", {"Manufacturer": "Philips"})
    with pytest.raises(InputError) as error:
        gradnl.check_vendor("a.grad", {"Manufacturer": "a" * 5000})
    assert len(str(error.value)) < 300


ROW = "  1 A( 3, 0)          -0.2500                   z\n"
WRONG = {
    "empty": ("", "is empty"),
    "binary": ("\0\1\2", "not a text file"),
    "prose": ("hello\n", "holds no coefficients"),
    "GE": ("SCALEX1 0.1\nSCALEY1 0.2\n", "looks like GE's gw_coils.dat"),
    "no radius": (ROW, "states no radius"),
    "odd radius": ("25 m = R0\n" + ROW, "radius R0 of 25000 mm"),
    "normalisation": ("0.25 m = R0, lnorm = 3?\n" + ROW, "only Siemens' lnorm = 4"),
    "twice": ("0.25 m = R0\n" + ROW + ROW, r"line 3: A\(3,0\) along z for the second time"),
    "order above degree": ("0.25 m = R0\n" + ROW.replace("( 3, 0)", "( 3, 4)"), r"line 2: A\(3,4\) is no harmonic"),
    "garbled row": ("0.25 m = R0\n" + ROW + " 2 A( 5, 0)  x  z\n", "line 3 is not a coefficient"),
    "unknown axis": ("0.25 m = R0\n" + ROW.replace(" z", " w"), "line 2 is not a coefficient"),
    "huge": ("0.25 m = R0\n" + ROW.replace("0.25", "99.0"), "expected fractions of R0"),
    "digits": ("alpha_z 3" + "9" * 6000 + " 0 -0.25;\n", "line 1 is not a coefficient"),
    "value of digits": ("alpha_z 3 0 -" + "9" * 6000 + "\n", "line 1: .* expected fractions of R0"),
    "garbled .coef": ("alpha_z 3 0 -0.25;\nalpha_x 3 one -0.2;\n", "line 2 is not a coefficient"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_coefficient_files_are_refused(kind, tmp_path):
    text, words = WRONG[kind]
    path = tmp_path / "c.grad"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        coils.read(path, radius=250.0 if text.startswith("alpha") else None)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def test_coef_files_need_their_radius(tmp_path, coil):
    path = tmp_path / "c.coef"
    path.write_text("# made up\nalpha_z 3 0 -0.25;\nalpha_x 3 1 -0.22;\nalpha_x 5 1 0.05;\nbeta_y 3 3 0.03;\n")
    assert np.array_equal(coils.read(path, radius=250.0).weights, coil.weights)
    with pytest.raises(InputError, match="states no radius"):
        coils.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        coils.read(tmp_path / "none.grad")


def test_arguments_are_named(coil):
    grid = oblique()
    with pytest.raises(UsageError, match="done must be 'none', '2D' or '3D'"):
        gradnl.correction(coil, grid, done="maybe")
    with pytest.raises(UsageError, match="Warp.forward: expected"):
        gradnl.correction(coil, grid).forward(torch.zeros(3, 3, 3))
    with pytest.raises(UsageError, match="Warp.stacked"):
        gradnl.Warp.stacked([gradnl.correction(coil, grid), gradnl.correction(coil, oblique((9, 9, 9)))])
