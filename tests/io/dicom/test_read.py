"""Classic DICOM series, held against positions computed from the standard's own formula, voxel by voxel."""

from __future__ import annotations

import sys
import warnings
import zipfile

import nibabel as nib
import numpy as np
import pytest

from mrisr.errors import GeometryError, InputError, MrisrWarning, UsageError
from mrisr.io import dicom
from mrisr.io.adapters import to_volume


def quiet(folder, **which):
    """Read, with no warning allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return dicom.read(folder, **which)


def test_every_voxel_lies_where_the_standard_says(tmp_path, made):
    volume = quiet(made.series(tmp_path))
    assert volume.data.shape == (made.columns, made.rows, made.slices)
    for i, j, k in [(0, 0, 0), (6, 4, 3), (2, 3, 1)]:
        assert volume.data[i, j, k] == made.pixel(k)[j, i]
        # PS3.3 equation C.7.6.2.1-1, in LPS
        lps = made.position(k) + made.turn[:, 0] * made.spacing[1] * i + made.turn[:, 1] * made.spacing[0] * j
        assert np.allclose(nib.affines.apply_affine(volume.affine, (i, j, k)), lps * [-1, -1, 1], atol=1e-6)
    assert np.allclose(volume.voxel_size, (made.spacing[1], made.spacing[0], made.distance))


def test_what_the_scanner_stated_is_kept(tmp_path, made):
    assert quiet(made.series(tmp_path)).meta == {
        "SliceThickness": 3.0,
        "SpacingBetweenSlices": made.distance,
        "MRAcquisitionType": "2D",
        "AcquisitionMatrix": [0, 256, 192, 0],
        "MagneticFieldStrength": 1.5,
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "AcquiredVoxelSize": [made.spacing[1], made.spacing[0], 3.0],
    }


def test_rescale_is_applied(tmp_path, made):
    volume = quiet(made.series(tmp_path, RescaleSlope=0.5, RescaleIntercept=-20))
    assert volume.data[6, 4, 3] == made.pixel(3)[4, 6] * 0.5 - 20


def test_files_in_any_order_folders_below_folders_and_zips(tmp_path, made):
    inner = made.series(tmp_path / "study")
    from_list = quiet([inner / f"IM000{i}" for i in (3, 1, 4, 2)])
    assert np.array_equal(from_list.data, quiet(tmp_path).data)
    packed = tmp_path / "study.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in inner.iterdir():
            archive.write(path, f"S1/{path.name}")
    assert dicom.is_dicom(packed) and np.array_equal(from_list.data, quiet(packed).data)


def test_a_dicomdir_names_its_files_and_says_which_are_not_there(tmp_path, made):
    import pydicom.fileset

    source = made.series(tmp_path / "source", PatientID="p", PatientName="p", StudyDate="20200101", StudyTime="120000")
    for path in source.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyID = "1"
        dataset.save_as(path)
    files = pydicom.fileset.FileSet()
    for path in source.iterdir():
        files.add(path)
    files.write(tmp_path / "disc")
    expected = quiet(source)
    assert np.array_equal(quiet(tmp_path / "disc" / "DICOMDIR").data, expected.data)
    assert np.array_equal(quiet(tmp_path / "disc").data, expected.data)
    last = sorted(p for p in (tmp_path / "disc").rglob("*") if p.is_file() and p.name != "DICOMDIR")[-1]
    last.unlink()
    with pytest.warns(MrisrWarning) as said:
        dicom.read(tmp_path / "disc" / "DICOMDIR")
    assert any(f"{last.name}: listed in the DICOMDIR, but not there" in str(w.message) for w in said)


def test_a_folder_goes_in_and_a_nibabel_image_comes_out_in_scanner_coordinates(tmp_path, made):
    volume, restore = to_volume(made.series(tmp_path))
    image = restore(volume)
    assert isinstance(image, nib.Nifti1Image) and np.allclose(image.affine, volume.affine, atol=1e-5)
    assert int(image.header["sform_code"]) == 1


def test_one_of_several_series_by_number_uid_or_description(tmp_path, made):
    made.series(tmp_path)
    made.series(tmp_path, SeriesInstanceUID="1.2.4", SeriesDescription="scout", SeriesNumber=1)
    listed = r"2 series; choose one with --series .*1 \(scout, 4 files, UID 1\.2\.4\).*7 \(T2w, 4 files, UID 1\.2\.3\)"
    with pytest.raises(InputError, match=listed):
        dicom.read(tmp_path)
    for wanted in ("1.2.4", 1, "1", "scout", "SCO"):
        with pytest.warns(MrisrWarning, match=r"left out 1 other series .*7 \(T2w"):
            assert dicom.find(tmp_path, series=wanted).values.uid("SeriesInstanceUID") == "1.2.4"
    with pytest.raises(InputError, match="no series '9' .number, UID or description.; it holds 1 "):
        dicom.read(tmp_path, series="9")


def test_series_belongs_to_dicom_only(tmp_path):
    with pytest.raises(UsageError, match="series, group: choose within a DICOM source"):
        to_volume(np.ones((3, 3, 3)), series=1)
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.arange(27, dtype=np.float32).reshape(3, 3, 3), np.eye(4)), path)
    with pytest.raises(UsageError, match="a.nii is no DICOM; leave them out"):
        to_volume(path, group=1)


# What is spoilt -> (error, its words)
BAD_SERIES = {
    "missing slice": (lambda d, m: (d / "IM0003").unlink(), GeometryError, "about 1 slice missing between .*6.6 mm"),
    "doubled slice": (
        lambda d, m: m.slice_file(d, 1, InstanceNumber=9).rename(d / "again") and m.slice_file(d, 1),
        GeometryError,
        "two slices at one position",
    ),
    "uneven": (
        lambda d, m: m.slice_file(d, 3, ImagePositionPatient=list(map(float, m.position(3) + 0.2 * m.normal))),
        GeometryError,
        "uneven positions: .* lie 3.5 mm apart, the others 3.3 mm",
    ),
    "other orientation": (
        lambda d, m: m.slice_file(d, 3, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        InputError,
        "mixed orientation, 2 groups of frames",
    ),
    "other spacing": (
        lambda d, m: m.slice_file(d, 3, PixelSpacing=[1, 1]),
        InputError,
        r"PixelSpacing \(0028,0030\) is \(.*1.0, 1.0\).* in .*IM0001",
    ),
    "other size": (
        lambda d, m: m.slice_file(d, 3, Rows=4),
        InputError,
        "slices of 5 x 7 .* and of 4 x 7 pixels .*IM0001",
    ),
    "other frame of reference": (
        lambda d, m: m.slice_file(d, 3, FrameOfReferenceUID="1.2.99"),
        InputError,
        "different frames of reference",
    ),
    "no position": (
        lambda d, m: m.slice_file(d, 3, ImagePositionPatient=None),
        InputError,
        r"IM0001: no ImagePositionPatient \(0020,0032\)",
    ),
    "no spacing": (lambda d, m: m.slice_file(d, 3, PixelSpacing=None), InputError, "IM0001: no PixelSpacing"),
    "single slice": (
        lambda d, m: [(d / f"IM000{i}").unlink() for i in (1, 2, 3)],
        InputError,
        "1 slice only, the others are missing",
    ),
    "short pixels": (
        lambda d, m: m.slice_file(d, 3, PixelData=b"\0\0"),
        InputError,
        "IM0001: its pixels are cut short: 2 of 70 bytes",
    ),
    "multi-frame": (
        lambda d, m: [m.slice_file(d, k, NumberOfFrames=2) for k in range(m.slices)],
        InputError,
        "its pixels are cut short: 70 of 140 bytes",
    ),
    "long pixels": (
        lambda d, m: m.series(d, Columns=6),
        InputError,
        "IM0004: 70 bytes of pixels, but 60 are due for 5 rows of 6 and 1 frame;",
    ),
    "pixels of floats": (
        lambda d, m: m.floats(d),
        InputError,
        r"its pixels are floating-point numbers \(FloatPixelData \(7fe0,0008\)",
    ),
    "no pictures": (
        lambda d, m: [m.slice_file(d, k, Rows=None) for k in range(m.slices)],
        InputError,
        r"states no Rows \(0028,0010\): cut short, or damaged",
    ),
    "a copy": (
        lambda d, m: (d / "copy").write_bytes((d / "IM0002").read_bytes()),
        InputError,
        "IM0002.*copy.* are copies of one image|copy and .*IM0002 are copies of one image",
    ),
    "CT": (lambda d, m: m.series(d, Modality="CT"), InputError, r"modality CT .*not MR"),
    "colour": (
        lambda d, m: m.series(d, PhotometricInterpretation="RGB", SamplesPerPixel=3),
        InputError,
        "colour .RGB., not one number per voxel",
    ),
    "mosaic": (
        lambda d, m: m.series(d, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]),
        InputError,
        "a MOSAIC .many slices tiled in one picture.",
    ),
    "phase": (
        lambda d, m: m.series(d, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]),
        InputError,
        r"a phase image .ImageType \(0008,0008\): ORIGINAL\\PRIMARY\\P\\ND",
    ),
    "phase, as Philips says it": (
        lambda d, m: m.series(d, ImageType=["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]),
        InputError,
        "a phase image",
    ),
}


@pytest.mark.parametrize("case", BAD_SERIES)
def test_series_that_cannot_be_used(case, tmp_path, made):
    spoil, error, words = BAD_SERIES[case]
    spoil(made.series(tmp_path), made)
    with pytest.raises(error, match=words) as caught:
        dicom.read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_what_is_no_dicom(tmp_path):
    assert not dicom.is_dicom(tmp_path)
    with pytest.raises(InputError, match="no DICOM file among its 0 files"):
        dicom.read(tmp_path)
    with pytest.raises(InputError, match="is a directory; give a file"):
        to_volume(tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 300)
    with pytest.raises(InputError, match="a: is no DICOM file: cut short, or damaged at its start"):
        dicom.read([tmp_path / "a"])
    with pytest.raises(InputError, match="b: no such file"):
        dicom.read(tmp_path / "b")


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch, made):
    made.series(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"DICOM needs pydicom; install it with: pip install '\.\[dicom\]'"):
        to_volume(tmp_path)
