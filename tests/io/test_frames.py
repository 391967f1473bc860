"""A 4D result written while it is computed: the bytes of a file written at once, and nothing where it fails."""

from __future__ import annotations

import io
import threading

import nibabel
import numpy as np
import pytest

from mrisr.errors import OutputError
from mrisr.io import gzipped, nifti
from mrisr.io.frames import PLANES, FrameWriter
from mrisr.volume import Volume

SHAPE, FRAMES = (40, 41, PLANES + 3), 3


@pytest.fixture
def series(tmp_path):
    """(source, result) on another grid, as files have them: with a header, a slope and an extension."""
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.integers(0, 900, (6, 7, 8, FRAMES)).astype(np.int16), np.diag([2, 2, 2.5, 1]))
    image.header["pixdim"][4] = 1.7
    image.header["cal_max"] = 900
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"what a converter said"))
    image.to_filename(tmp_path / "in.nii.gz")
    source = nifti.read(tmp_path / "in.nii.gz")
    affine = np.diag([1.5, 1.4, 1.3, 1.0])
    return source, source.replace(rng.random((*SHAPE, FRAMES), np.float32), affine)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("header", [True, False])
def test_the_bytes_of_a_file_written_at_once(tmp_path, series, ending, header):
    source, result = series
    if not header:  # an array's, which has none
        source, result = (Volume(v.data, v.affine, name="array", from_outside=False) for v in series)
    nifti.write(result, tmp_path / f"whole{ending}", descrip="what it is")
    with FrameWriter(tmp_path / f"apart{ending}", source, "what it is") as writer:
        for t, frame in enumerate(result.frames()):
            writer.add(t, frame, result.affine)
        writer.finish()
    whole, apart = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("whole", "apart"))
    if ending.endswith(".gz"):  # packed in other pieces
        for name in ("whole", "apart"):
            with gzipped.reading(tmp_path / f"{name}{ending}") as stream:
                whole, apart = apart, stream.read()
    assert whole == apart


def test_a_frame_is_on_the_disk_before_the_next_but_one_is_given(tmp_path, series):
    source, result = series
    path, sizes = tmp_path / "out.nii", []
    with FrameWriter(path, source, "") as writer:
        for t, frame in enumerate(result.frames()):
            writer.add(t, frame, result.affine)
            sizes.append(path.stat().st_size)
        writer.finish()
    assert "mrisr frames" not in {thread.name for thread in threading.enumerate()}
    assert sizes[-1] >= (FRAMES - 2) * 4 * np.prod(SHAPE) - io.DEFAULT_BUFFER_SIZE


def test_what_cannot_be_written_is_said_to_who_gives_the_frames(tmp_path, series):
    source, result = series
    with (
        pytest.raises(OutputError, match="none/out.nii: cannot be written"),
        FrameWriter(tmp_path / "none" / "out.nii", source, "") as writer,
    ):
        for t, frame in enumerate(result.frames()):
            writer.add(t, frame, result.affine)
        writer.finish()
    assert "mrisr frames" not in {thread.name for thread in threading.enumerate()}


def test_frames_come_in_order_and_all_of_them(tmp_path, series):
    source, result = series
    frames = list(result.frames())
    with FrameWriter(tmp_path / "out.nii", source, "") as writer:
        writer.add(0, frames[0], result.affine)
        with pytest.raises(ValueError, match="expected 1, found 2"):
            writer.add(2, frames[2], result.affine)
        with pytest.raises(ValueError, match="expected 3 frames, found 1"):
            writer.finish()


def test_a_run_tells_its_frames_while_it_computes(random_model, head, tmp_path):
    """Through `mrisr.upscale`: every frame, in order, before the next is begun, and the result's own voxels."""
    import mrisr

    told = []

    class Progress:
        def __call__(self, stage, fraction):
            told.append(stage)

        def frame(self, index, image, affine):
            told.append((index, image.copy(), affine))

    data = np.stack([head((16, 18, 14)), 2 * head((16, 18, 14))], axis=-1)
    result, info = mrisr.upscale(
        data, affine=np.diag([2, 2, 2, 1.0]), model=random_model("tiny"), voxel_size=1.5, progress=Progress(),
        return_info=True,
    )  # fmt: skip
    frames = [entry for entry in told if isinstance(entry, tuple)]
    assert [index for index, *_ in frames] == [0, 1]
    for index, image, affine in frames:
        np.testing.assert_array_equal(image, result[..., index])
        np.testing.assert_array_equal(affine, info.target.affine)
    places = [i for i, entry in enumerate(told) if isinstance(entry, tuple)]
    assert "network" in told[places[0] + 1 : places[1]]
