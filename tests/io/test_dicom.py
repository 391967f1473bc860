"""DICOM series, held against positions computed from the standard's own formula, voxel by voxel."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrisr.errors import GeometryError, InputError
from mrisr.io import dicom
from mrisr.io.adapters import to_volume

pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")

ROWS, COLUMNS, SLICES = 5, 7, 4
DISTANCE, SPACING = 3.3, (0.8, 1.2)  # between slices; between rows, between columns
TURN = nib.eulerangles.euler2mat(0.2, 0.4, -0.3)
NORMAL = np.cross(TURN[:, 0], TURN[:, 1])


def position(k: int) -> np.ndarray:
    return np.array([-30.0, 12, 5]) + k * DISTANCE * NORMAL


def pixel(k: int) -> np.ndarray:
    return 100 * k + 10 * np.arange(ROWS)[:, None] + np.arange(COLUMNS)


def slice_file(folder: Path, k: int, **changes: object) -> Path:
    """Slice k, under a file name and an instance number that count backwards."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds = pydicom.Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID, ds.SeriesDescription, ds.InstanceNumber = "1.2.3", "T2w", SLICES - k
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = pixel(k).astype("<i2").tobytes()
    ds.PixelSpacing = list(SPACING)
    ds.ImageOrientationPatient = [round(float(v), 10) for v in (*TURN[:, 0], *TURN[:, 1])]
    ds.ImagePositionPatient = [round(float(v), 10) for v in position(k)]
    ds.SliceThickness, ds.SpacingBetweenSlices, ds.MagneticFieldStrength = 3.0, DISTANCE, 1.5
    ds.MRAcquisitionType, ds.AcquisitionMatrix, ds.ImageType = "2D", [0, 256, 192, 0], ["ORIGINAL", "PRIMARY"]
    for key, value in changes.items():
        if value is None:
            delattr(ds, key)
        else:
            setattr(ds, key, value)
    path = folder / f"IM{SLICES - k:04d}{changes.get('SeriesInstanceUID', '')}"
    ds.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, **changes: object) -> Path:
    for k in range(SLICES):
        slice_file(folder, k, **changes)
    return folder


def test_every_voxel_lies_where_the_standard_says(tmp_path):
    volume = dicom.read(series(tmp_path))
    assert volume.data.shape == (COLUMNS, ROWS, SLICES)
    for i, j, k in [(0, 0, 0), (6, 4, 3), (2, 3, 1)]:
        assert volume.data[i, j, k] == pixel(k)[j, i]
        # PS3.3 equation C.7.6.2.1-1, in LPS
        lps = position(k) + TURN[:, 0] * SPACING[1] * i + TURN[:, 1] * SPACING[0] * j
        assert np.allclose(nib.affines.apply_affine(volume.affine, (i, j, k)), lps * [-1, -1, 1], atol=1e-6)
    assert np.allclose(volume.voxel_size, (SPACING[1], SPACING[0], DISTANCE))


def test_what_the_scanner_stated_is_kept(tmp_path):
    assert dicom.read(series(tmp_path)).meta == {
        "SliceThickness": 3.0,
        "SpacingBetweenSlices": DISTANCE,
        "MRAcquisitionType": "2D",
        "AcquisitionMatrix": [0, 256, 192, 0],
        "MagneticFieldStrength": 1.5,
        "ImageType": ["ORIGINAL", "PRIMARY"],
    }


def test_rescale_is_applied(tmp_path):
    volume = dicom.read(series(tmp_path, RescaleSlope=0.5, RescaleIntercept=-20))
    assert volume.data[6, 4, 3] == pixel(3)[4, 6] * 0.5 - 20


def test_files_in_any_order_and_folders_with_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("not DICOM")
    folder = series(tmp_path)
    from_list = dicom.read([folder / f"IM000{i}" for i in (3, 1, 4, 2)])
    assert np.array_equal(from_list.data, dicom.read(folder).data)


def test_a_folder_goes_in_and_a_nibabel_image_comes_out(tmp_path):
    volume, restore = to_volume(series(tmp_path))
    image = restore(volume)
    assert isinstance(image, nib.Nifti1Image) and np.allclose(image.affine, volume.affine, atol=1e-5)


def test_one_of_several_series(tmp_path):
    series(tmp_path)
    series(tmp_path, SeriesInstanceUID="1.2.4", SeriesDescription="scout")
    with pytest.raises(InputError, match=r"2 series; pick one with series= .*1\.2\.3 \(T2w, 4\).*1\.2\.4 \(scout, 4\)"):
        dicom.read(tmp_path)
    assert dicom.read(tmp_path, series="1.2.4").data.shape == (COLUMNS, ROWS, SLICES)
    with pytest.raises(InputError, match="no series 9; found"):
        dicom.read(tmp_path, series="9")


BAD_SERIES = {
    "missing slice": (lambda d: (d / "IM0003").unlink(), GeometryError, "slices 0 and 1 lie 6.6 mm apart"),
    "doubled slice": (
        lambda d: slice_file(d, 1, InstanceNumber=9).rename(d / "again") and slice_file(d, 1),
        GeometryError,
        "two slices at one position",
    ),
    "uneven": (
        lambda d: slice_file(d, 3, ImagePositionPatient=list(map(float, position(3) + 0.2 * NORMAL))),
        GeometryError,
        "lie 3.5 mm apart, the others 3.3 mm",
    ),
    "other orientation": (
        lambda d: slice_file(d, 3, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        InputError,
        "slices differ in ImageOrientationPatient",
    ),
    "other spacing": (
        lambda d: slice_file(d, 3, PixelSpacing=[1, 1]),
        InputError,
        "slices differ in PixelSpacing",
    ),
    "no position": (
        lambda d: slice_file(d, 3, ImagePositionPatient=None),
        InputError,
        "has no ImagePositionPatient",
    ),
    "no spacing": (lambda d: slice_file(d, 3, PixelSpacing=None), InputError, "has no PixelSpacing"),
    "single slice": (
        lambda d: [(d / f"IM000{i}").unlink() for i in (1, 2, 3)],
        InputError,
        "one slice; a single",
    ),
    "short pixels": (lambda d: slice_file(d, 3, PixelData=b"\0\0"), InputError, "pixels cannot be decoded"),
    "multi-frame": (
        lambda d: [slice_file(d, k, NumberOfFrames=2) for k in range(SLICES)],
        InputError,
        "enhanced .multi-frame. DICOM; convert it to NIfTI with dcm2niix",
    ),
    "no pictures": (
        lambda d: [slice_file(d, k, Rows=None) for k in range(SLICES)],
        InputError,
        "the DICOM files hold no pictures",
    ),
}


@pytest.mark.parametrize("case", BAD_SERIES)
def test_series_that_cannot_be_used(case, tmp_path):
    spoil, error, words = BAD_SERIES[case]
    spoil(series(tmp_path))
    with pytest.raises(error, match=words) as caught:
        dicom.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ") and "\n" not in str(caught.value)


def test_what_is_no_dicom(tmp_path):
    assert not dicom.is_dicom(tmp_path)
    with pytest.raises(InputError, match="no DICOM file; give the folder that holds the series"):
        dicom.read(tmp_path)
    with pytest.raises(InputError, match="is a directory; give a file"):
        to_volume(tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 300)
    with pytest.raises(InputError, match="a: cannot be read as DICOM"):
        dicom.read([tmp_path / "a"])
    with pytest.raises(InputError, match="b: no such file"):
        dicom.read(tmp_path / "b")


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    series(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"DICOM needs pydicom; install it with: pip install 'mrisr\[dicom\]'"):
        to_volume(tmp_path)
