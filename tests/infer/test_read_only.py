"""Read-only NumPy arrays, of any dtype and layout, give what writable ones give, and no other library's warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import mrisr


@pytest.mark.parametrize("make", [
    lambda a: a,
    lambda a: a.astype(np.int16),
    lambda a: np.asfortranarray(a),
    lambda a: a[::-1],
    lambda a: np.broadcast_to(a[..., None], (*a.shape, 2)),
])  # fmt: skip
def test_a_read_only_scan(make, head, random_model):
    scan = make(head((20, 22, 18)))
    how = dict(input_voxel_size=2.0, voxel_size=1.5, model=random_model("local"), engine="torch", threads=1)
    expected = mrisr.upscale(np.array(scan), **how)
    scan.flags.writeable = False
    before = scan.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mrisr.upscale(scan, **how)
    assert np.array_equal(found, expected) and np.array_equal(scan, before)


def test_a_read_only_field_and_affine(head, random_model):
    scan, affine = head((20, 22, 18)), np.diag([2.0, 2, 2, 1])
    field = np.full(scan.shape, 1.25, np.float32)
    for array in (scan, affine, field):
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mrisr.upscale(
            scan, affine=affine, bias=field, voxel_size=1.5, model=random_model("local"), engine="torch", threads=1
        )
    assert np.isfinite(found).all()
