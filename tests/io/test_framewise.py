"""A 4D scan read, computed and written a frame at a time: the same voxels, refused as early, in the memory of a few."""

from __future__ import annotations

import threading
import tracemalloc

import nibabel
import numpy as np
import pytest

import mrisr
from mrisr.errors import InputError
from mrisr.io import nifti
from mrisr.io.framewise import FileFrames
from mrisr.volume import Frames

SHAPE, FRAMES = (30, 31, 32), 6


def saved(path, data, slope=1.7, kind=nibabel.Nifti1Image, order="<"):
    image = kind(data, np.diag([2, 2, 2.5, 1]))
    image.header.set_slope_inter(slope, 3)
    if order == ">":
        header = kind.header_class(endianness=">")
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(slope, 3)
        image = kind(data, np.diag([2, 2, 2.5, 1]), header)
    image.to_filename(path)
    return path


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-20, 900, (*SHAPE, FRAMES)).astype(np.int16)


@pytest.mark.parametrize(
    ("name", "kind", "order"),
    [
        ("a.nii", nibabel.Nifti1Image, "<"),
        ("a.nii.gz", nibabel.Nifti1Image, "<"),
        ("a.nii.gz", nibabel.Nifti2Image, ">"),
        ("a.hdr", nibabel.Nifti1Pair, "<"),
        ("a.img.gz", nibabel.Nifti1Pair, "<"),
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
def test_the_frames_are_those_of_the_whole(tmp_path, voxels, name, kind, order, dtype):
    path = saved(tmp_path / name, voxels.astype(dtype), kind=kind, order=order)
    whole, apart = nifti.read(path), nifti.read(path, framewise=True)
    assert isinstance(apart.data, FileFrames) and (apart.data.shape, apart.data.ndim) == (whole.data.shape, 4)
    assert apart.header == whole.header and np.array_equal(apart.affine, whole.affine)
    for _ in range(2):  # again from the start
        frames = list(apart.frames())
        assert len(frames) == FRAMES and all(f.flags.c_contiguous and f.dtype == np.float32 for f in frames)
        assert all(np.array_equal(f, w) for f, w in zip(frames, whole.frames()))
    assert (apart.data.min(), apart.data.max()) == (whole.data.min(), whole.data.max())
    assert np.array_equal(apart.data[..., 4], whole.data[..., 4])
    assert np.array_equal(apart.data[..., -1], whole.data[..., -1])
    assert np.array_equal(apart.data[3:5], whole.data[3:5]) and np.array_equal(apart.data, whole.data)
    assert not any(thread.name.startswith("mrisr read") for thread in threading.enumerate())


def test_what_is_3d_or_mgh_is_read_whole(tmp_path, voxels):
    assert isinstance(nifti.read(saved(tmp_path / "a.nii", voxels[..., 0]), framewise=True).data, np.ndarray)
    nibabel.MGHImage(voxels, np.eye(4)).to_filename(tmp_path / "a.mgz")
    assert isinstance(nifti.read(tmp_path / "a.mgz", framewise=True).data, np.ndarray)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_memory_holds_a_few_frames_however_many_there_are(tmp_path, ending):
    rng = np.random.default_rng(0)
    path = saved(tmp_path / f"long{ending}", rng.integers(0, 900, (*SHAPE, 60)).astype(np.int16))
    tracemalloc.start()
    try:
        volume, total = nifti.read(path, framewise=True), 0.0
        for frame in volume.frames():
            total += float(frame.sum())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 0
    # As nibabel scales: float64, twice a frame of ours each; packed bytes come a megabyte at a time.
    assert peak < 12 * 4 * np.prod(SHAPE) + 3e6 < 60 * 4 * np.prod(SHAPE)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d.__setitem__((3, 4, 5, 5), np.nan), "a.nii.gz: frame 5 of 6: 1 NaN and 0 infinite voxels of 29760"),
        (lambda d: d.__setitem__((..., 4), 7), "a.nii.gz: frame 4 of 6 is constant"),
    ],
)
def test_what_is_wrong_with_the_last_frames_is_said_first(tmp_path, voxels, spoil, words):
    data = voxels.astype(np.float32)
    spoil(data)
    with pytest.raises(InputError, match=words):
        nifti.read(saved(tmp_path / "a.nii.gz", data), framewise=True)


def test_a_file_that_changes_meanwhile_is_named(tmp_path, voxels):
    path = saved(tmp_path / "a.nii", voxels)
    frames = nifti.read(path, framewise=True).frames()
    next(frames)
    with path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(InputError, match=r"a.nii: frame \d of 6 cannot be read .*was the file changed meanwhile\?"):
        list(frames)


def test_a_result_whose_frames_are_given_away_holds_none(tmp_path, head, random_model):
    """The same voxels as the whole result has, and a memory of arrays that does not grow with the frames."""
    one, peaks = head((24, 26, 22)), {}
    for count in (2, 8):
        data = np.stack([one * (1 + 0.1 * t) for t in range(count)], axis=-1).astype(np.int16)
        source = nifti.read(saved(tmp_path / f"{count}.nii", data), framewise=True)
        told = []

        class Progress:
            keeps_frames = True

            def __call__(self, stage, fraction):
                pass

            def frame(self, index, image, affine):
                told.append(float(image.sum()))  # noqa: B023 - of this round

        how = dict(model=random_model("tiny"), factor=2, engine="torch", threads=1)
        tracemalloc.start()
        try:
            result, info = mrisr.upscale(source, progress=Progress(), return_info=True, **how)
            peaks[count] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        whole = mrisr.upscale(nifti.read(tmp_path / f"{count}.nii"), **how)
        assert isinstance(result.data, Frames) and result.data.shape == whole.data.shape and info.frames == count
        assert told == [float(np.ascontiguousarray(frame).sum()) for frame in whole.frames()]
        with pytest.raises(RuntimeError, match="given to whoever asked"):
            np.asarray(result.data)
    assert peaks[8] < peaks[2] + 4 * 8 * one.size  # one frame of the result
