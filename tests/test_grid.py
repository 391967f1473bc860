"""Target grids: the formulas of the design, held against arithmetic done by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrisr.errors import GeometryError, UsageError
from mrisr.grid import Grid, axis_positions, plan, ratios

OBLIQUE = np.array([[0.9, -0.2, 0.4, -90], [0.3, 1.1, -0.5, 40], [-0.1, 0.3, 2.3, 12], [0, 0, 0, 1.0]])


def cube(n: int, size: float) -> Grid:
    return Grid((n, n, n), np.diag([size, size, size, 1.0]))


def test_importing_volume_grid_and_errors_loads_numpy_only():
    code = (
        "import sys, mrisr.errors, mrisr.grid, mrisr.volume;"
        "print([m for m in ('torch', 'nibabel', 'scipy', 'pydicom') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_twice_finer_by_hand():
    target = plan(Grid((4, 3, 2), np.diag([1.0, 2.0, 3.0, 1.0])), factor=2)
    assert target.shape == (8, 6, 4)
    assert np.allclose(target.affine, [[0.5, 0, 0, -0.25], [0, 1, 0, -0.5], [0, 0, 1.5, -0.75], [0, 0, 0, 1]])


def test_a_size_that_does_not_divide_by_hand():
    # 10 mm of field of view hold 14.29 voxels of 0.7 mm: 14 of them, centred on 4.5 mm.
    target = plan(cube(10, 1.0), voxel_size=0.7)
    assert target.shape == (14, 14, 14)
    assert np.allclose(target.affine[:3, 3], 4.5 - 6.5 * 0.7)


@pytest.mark.parametrize("n", [1, 7, 180, 256, 511])
@pytest.mark.parametrize("size", [0.3, 0.7, 0.9, 1.1, 1.2])
def test_float32_voxel_sizes_lose_no_voxel(n, size):
    source = cube(n, float(np.float32(size)))
    assert plan(source, voxel_size=size).shape == (n, n, n)
    assert plan(source, voxel_size=size / 3).shape == (3 * n, 3 * n, 3 * n)


@pytest.mark.parametrize("n", [5, 15, 95, 255, 505])
def test_float32_halves_round_like_exact_ones(n):
    # 5 x 0.9 mm are 4.5 voxels of 1 mm; float32(0.9) is 2e-8 short of it.
    shapes = {plan(cube(n, size), voxel_size=1.0).shape for size in (0.9, float(np.float32(0.9)))}
    assert shapes == {(int(0.9 * n + 0.51),) * 3}


def test_halves_round_up_as_in_cpp():
    assert plan(cube(5, 1.0), voxel_size=2.0).shape == (3, 3, 3)  # 2.5
    assert plan(cube(3, 1.0), voxel_size=2.0).shape == (2, 2, 2)  # 1.5


def test_a_voxel_larger_than_the_field_of_view_leaves_one():
    assert plan(cube(2, 1.0), voxel_size=9.0).shape == (1, 1, 1)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.integers(1, 400)] * 3),
    st.tuples(*[st.floats(0.2, 9.0)] * 3),
    st.booleans(),
)
def test_centre_extent_and_axes_are_kept(shape, sizes, by_factor):
    source = Grid(shape, OBLIQUE)
    target = plan(source, factor=sizes) if by_factor else plan(source, voxel_size=sizes)
    assert np.allclose(target.center, source.center, atol=1e-9)
    voxel = np.array(target.voxel_size)
    kept = np.abs(np.array(target.extent) - source.extent) <= (0.5 + 1e-3) * voxel
    assert (kept | (np.array(target.shape) == 1)).all()
    directions = [g.affine[:3, :3] / g.voxel_size for g in (source, target)]
    assert np.allclose(*directions)
    if not by_factor:
        assert np.allclose(voxel, sizes)
    # The positions along each axis are what the two affines say.
    for axis, (n_in, n_out, r) in enumerate(zip(shape, target.shape, ratios(source, target), strict=True)):
        index = np.zeros((4, n_out))
        index[axis], index[3] = np.arange(n_out), 1
        in_source = np.linalg.inv(source.affine) @ target.affine @ index
        assert np.allclose(in_source[axis], axis_positions(n_in, n_out, r), atol=1e-6)


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf, "0.7", (1, 2), (1, 2, 0), [], "abc"])
def test_sizes_that_cannot_be_right(bad):
    with pytest.raises(UsageError, match="voxel_size: expected one positive number or three, found"):
        plan(cube(4, 1.0), voxel_size=bad)
    if bad is not None:
        with pytest.raises(UsageError, match="factor: expected one positive number or three, found"):
            plan(cube(4, 1.0), factor=bad)


def test_voxel_size_and_factor_together_are_refused():
    with pytest.raises(UsageError, match="voxel_size or factor, not both"):
        plan(cube(4, 1.0), voxel_size=0.5, factor=2)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag([1, 0, 1, 1]), "voxel size 1 x 0 x 1 mm has a zero"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "not invertible"),
        (np.diag([1, np.nan, 1, 1]), "NaN or infinite"),
        (np.eye(3), "expected a 4 x 4 affine, found shape"),
        (np.ones((4, 4)), "last row"),
        ("here", "4 x 4 affine of numbers"),
    ],
)
def test_affines_that_cannot_be_used(affine, words):
    with pytest.raises(GeometryError, match=words):
        Grid((2, 2, 2), affine)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ((0.51, 0.51, 4.0), (0.51, 0.51, 0.7)),  # what is finer stays
        ((1.0, 1.0, 1.0), (0.7, 0.7, 0.7)),
        ((0.9, 0.5, 0.7), (0.7, 0.5, 0.7)),
        ((0.7, 0.7, 0.7), (0.7, 0.7, 0.7)),
        ((0.5, 0.6, 0.3), (0.5, 0.6, 0.3)),
        ((np.float32(0.7), 0.7 + 1e-9, 2.0), (np.float32(0.7), 0.7 + 1e-9, 0.7)),
    ],
)
def test_the_default_voxel_is_per_axis_the_smaller_of_the_scans_and_0p7(own, expected):
    source = Grid((20, 22, 24), np.diag([*own, 1.0]))
    target = plan(source)
    assert np.allclose(target.voxel_size, expected, rtol=1e-12)
    kept = np.array(own) <= 0.7 * (1 + 1e-4)
    assert (np.array(target.shape) == source.shape)[kept].all()
    if kept.all():
        assert target == source
    assert np.allclose(plan(source, voxel_size=0.7).voxel_size, 0.7)  # the isotropic one, on request


def test_grids_compare_hash_and_cannot_be_changed():
    a, b = cube(4, 1.0), cube(4, 1.0)
    assert a == b and hash(a) == hash(b) and a != cube(5, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        a.affine[0, 0] = 2
    with pytest.raises(GeometryError, match="three positive voxel counts"):
        Grid((4, 0, 4), np.eye(4))
