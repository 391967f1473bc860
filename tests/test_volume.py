"""What a Volume accepts, keeps and refuses."""

from __future__ import annotations

import numpy as np
import pytest

from mrisr.errors import GeometryError, InputError
from mrisr.volume import Volume

RAMP = np.arange(2 * 3 * 4, dtype=np.float64).reshape(2, 3, 4)


def with_voxel(value: complex, dtype: type = np.float64) -> np.ndarray:
    data = RAMP.astype(dtype)
    data[1, 1, 1] = value
    return data


@pytest.mark.parametrize("dtype", ["bool", "i1", "u2", ">i2", ">f4", "f2", "f8", "i8", "g"])
def test_real_types_become_contiguous_float32(dtype):
    data = np.asfortranarray(RAMP > 5 if dtype == "bool" else RAMP).astype(dtype)
    volume = Volume(data, np.eye(4))
    assert volume.data.dtype == np.float32 and volume.data.dtype.isnative and volume.data.flags.c_contiguous
    assert np.array_equal(volume.data, data.astype(np.float32))


def test_frames_and_grid_leave_time_out():
    volume = Volume(np.stack([RAMP, -RAMP], axis=-1), np.diag([1, 2, 3, 1]))
    assert volume.grid.shape == (2, 3, 4) and volume.voxel_size == (1, 2, 3)
    first, second = volume.frames()
    assert np.array_equal(first, -second)
    assert [f.shape for f in Volume(RAMP, np.eye(4)).frames()] == [(2, 3, 4)]


BAD_VALUES = {
    "nan": (with_voxel(np.nan), "1 NaN and 0 infinite voxels of 24; replace them first"),
    "inf": (with_voxel(-np.inf), "0 NaN and 1 infinite voxels of 24"),
    "inf in float16": (with_voxel(np.inf, np.float16), "0 NaN and 1 infinite"),
    "too large": (with_voxel(1e300), "exceed float32; rescale first"),
    "too small": (with_voxel(-1e39), "exceed float32; rescale first"),
    "complex": (RAMP + 1j, "complex data (complex128); take the magnitude first"),
    "rgb": (np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB or structured data"),
    "text": (np.full((2, 3, 4), "a"), "expected numbers, found dtype"),
    "objects": (np.full((2, 3, 4), None), "expected numbers, found dtype object"),
    "constant": (np.full((2, 3, 4), 7), "the volume is constant (every voxel 7)"),
    "constant frame": (np.stack([RAMP, 0 * RAMP], -1), "frame 1 of 2 is constant (every voxel 0)"),
    "1D": (np.zeros(3), "expected a 3D or 4D volume, found 1D, shape (3,)"),
    "2D": (np.zeros((3, 4)), "expected a 3D or 4D volume, found 2D, shape (3, 4)"),
    "5D": (np.zeros((3, 4, 5, 1, 1)), "expected a 3D or 4D volume, found 5D"),
    "empty": (np.zeros((3, 0, 4)), "the volume is empty, shape (3, 0, 4)"),
    "no frames": (np.zeros((3, 3, 4, 0)), "the volume is empty"),
    "one slice": (np.zeros((3, 1, 4)), "fewer than 2 voxels along an axis"),
    "channel first": (np.zeros((1, 3, 4, 5)), "expected [X, Y, Z] or [X, Y, Z, T]"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_voxels_that_cannot_be_used(case):
    data, words = BAD_VALUES[case]
    with pytest.raises(InputError) as caught:
        Volume(data, np.eye(4), name="scan.nii")
    message = str(caught.value)
    assert message.startswith("scan.nii: ") and words in message and "\n" not in message


def test_affines_are_refused_by_the_name_of_the_scan():
    with pytest.raises(GeometryError, match="scan.nii: voxel size 1 x 1 x 0 mm has a zero"):
        Volume(RAMP, np.diag([1, 1, 0, 1]), name="scan.nii")


def test_results_may_be_constant_but_not_broken():
    source = Volume(RAMP, np.eye(4), header={"kept": 1}, name="scan.nii", meta={"ImageType": "ORIGINAL"})
    result = source.replace(np.zeros((4, 6, 8)), np.diag([0.5, 0.5, 0.5, 1]))
    assert result.voxel_size == (0.5, 0.5, 0.5)
    assert (result.header, result.name, result.meta) == (source.header, source.name, source.meta)
    assert np.array_equal(source.replace(RAMP + 1).affine, source.affine)
    with pytest.raises(InputError, match="24 NaN"):
        source.replace(RAMP * np.nan)


def test_no_head_has_voxels_of_400_mm_or_of_a_micron():
    with pytest.raises(GeometryError, match="voxels of 0.001 x 0.001 x 0.003 mm, which no scan of a head has"):
        Volume(np.arange(64.0).reshape(4, 4, 4), np.diag([0.001, 0.001, 0.003, 1]))
    with pytest.raises(GeometryError, match="voxels of 400 x 1 x 1 mm, which no scan of a head has"):
        Volume(np.arange(64.0).reshape(4, 4, 4), np.diag([400.0, 1, 1, 1]))
