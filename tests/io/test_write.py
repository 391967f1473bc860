"""Writing: whole files or none, never over another's file, only where it is possible."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrisr.errors import MrisrWarning, OutputError
from mrisr.io import nifti
from mrisr.io.atomic import replacing
from mrisr.volume import Volume

RAMP = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
VOLUME = Volume(RAMP, np.diag([1, 2, 3, 1]))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgh", "a.mgz", "sub-01.v2.nii.gz", "A.NII.GZ", "ü b.nii"])
def test_written_files_read_back(name, tmp_path):
    nifti.write(VOLUME, tmp_path / name)
    back = nifti.read(tmp_path / name)
    assert np.array_equal(back.data, RAMP) and np.allclose(back.affine, VOLUME.affine)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    compressed = (tmp_path / name).read_bytes()[:2] == b"\x1f\x8b"
    assert compressed == name.lower().endswith((".gz", ".mgz"))


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write(VOLUME, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_an_array_is_placed_by_sform_and_qform(tmp_path):
    nifti.write(VOLUME, tmp_path / "a.nii")
    header = nib.load(tmp_path / "a.nii").header
    assert (header["sform_code"], header["qform_code"]) == (2, 2)
    assert np.allclose(header.get_sform(), VOLUME.affine) and np.allclose(header.get_qform(), VOLUME.affine)
    assert header.get_xyzt_units()[0] == "mm"


def test_files_get_the_usual_permissions(tmp_path):
    (tmp_path / "other").touch()
    nifti.write(VOLUME, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["a.png", "a", "a.nii.bz2", "a.img", ".gz"])
def test_an_unknown_ending(name, tmp_path):
    with pytest.raises(OutputError, match="the output format is not known; end the name in .nii, .nii.gz, .mgh, .mgz"):
        nifti.write(VOLUME, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "a.nii"
    path.write_text("precious")
    with pytest.raises(OutputError, match="a.nii: exists already; choose another name, or overwrite it with force"):
        nifti.write(VOLUME, path)
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1
    nifti.write(VOLUME, path, force=True)
    assert np.array_equal(nifti.read(path).data, RAMP)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OutputError, match="exists already"), replacing(path) as beside:
        beside.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


def test_targets_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "file").touch()
    for name, words in {
        "folder.nii": "is a directory",
        "no/a.nii": "there is no directory .*no; create it first",
        "file/a.nii": "there is no directory .*file",
        "x" * 300 + ".nii": "cannot be written .File name too long",
    }.items():
        with pytest.raises(OutputError, match=words):
            nifti.write(VOLUME, tmp_path / name, force=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(OutputError, match="no permission to write in .*; choose another directory"):
        nifti.write(VOLUME, tmp_path / "a.nii")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.nii"]


def test_devices_are_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="is a device or pipe"):
        (tmp_path / "a.nii").symlink_to("/dev/null")
        nifti.write(VOLUME, tmp_path / "a.nii", force=True)
    assert not Path("/dev/null").is_file()


def test_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "a.nii").symlink_to(tmp_path / "there" / "real.nii")
    nifti.write(VOLUME, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").is_symlink() and (tmp_path / "there" / "real.nii").is_file()


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), MemoryError()]
)
@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
def test_a_failure_on_the_way_leaves_the_old_file_and_nothing_else(name, failure, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_text("old")

    def fail_half_way(image, filename):
        Path(filename).write_bytes(b"half")
        assert Path(filename).parent == tmp_path  # beside: os.replace must not cross file systems
        raise failure

    def fail_in_the_stream(image, stream):
        stream.write(b"half")
        raise failure

    monkeypatch.setattr(nib.filebasedimages.FileBasedImage, "to_filename", fail_half_way)
    monkeypatch.setattr(nib.filebasedimages.SerializableImage, "to_stream", fail_in_the_stream)
    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        nifti.write(VOLUME, path, force=True)
    if expected is OutputError:
        what = "make room there, or choose another place"
        assert str(caught.value) == f"{path}: cannot be written (No space left on device); {what}"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_shape_beyond_the_format(tmp_path):
    long = VOLUME.replace(np.zeros((1, 40000, 1)))
    with pytest.raises(OutputError, match=r"shape \(1, 40000, 1\) does not fit NIfTI-1"):
        nifti.write(long, tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []


def test_outliers_that_leave_few_whole_numbers_are_warned_of(tmp_path):
    data = np.random.default_rng(0).normal(500, 100, (16, 16, 16)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nifti.write(Volume(data, np.eye(4)), tmp_path / "a.nii", dtype="int16")
    data[0, 0, 1] = 1e6
    with pytest.warns(MrisrWarning, match=r"b.nii: int16 leaves 3\d.* steps for 98 % of the values .* write float32"):
        nifti.write(Volume(data, np.eye(4)), tmp_path / "b.nii", dtype="int16")


@pytest.mark.parametrize("filled", [0.0, -7.0, 0.1, -1024.0])
def test_what_a_background_was_filled_with_stays_that_in_whole_numbers(filled, tmp_path):
    data = (np.random.default_rng(0).random((12, 13, 14)) * 900 - 30).astype(np.float32)
    data[:4] = filled
    nifti.write(Volume(data, np.diag([1, 1, 2, 1])), tmp_path / "a.nii.gz", dtype="int16")
    stored, found = nib.load(tmp_path / "a.nii.gz"), nifti.read(tmp_path / "a.nii.gz").data
    assert stored.get_data_dtype() == np.int16 and (np.asarray(stored.dataobj)[:4] == np.float32(filled)).all()
    assert (found[:4] == np.float32(filled)).all() and np.abs(found - data).max() <= 0.501 * stored.dataobj.slope
