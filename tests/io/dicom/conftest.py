"""A small oblique series to spoil, and the real ones where they are at hand."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from tests import real_data

pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")

ROWS, COLUMNS, SLICES = 5, 7, 4
DISTANCE, SPACING = 3.3, (0.8, 1.2)  # between slices; between rows, between columns
TURN = nib.eulerangles.euler2mat(0.2, 0.4, -0.3)
NORMAL = np.cross(TURN[:, 0], TURN[:, 1])


def pytest_collection_modifyitems(items):
    for item in items:
        if "archive" in getattr(item, "fixturenames", ()):
            item.add_marker(real_data.needs_series)


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """archive(name) -> the folder of a real series."""
    where, made = real_data.SERIES, {}

    def unpack(name: str) -> Path:
        if not (where / f"{name}.tar.xz").is_file():
            pytest.skip(f"no {name}.tar.xz in MRISR_DICOM_DATA or ../shared/data/dicom")
        if name not in made:
            made[name] = tmp_path_factory.mktemp("dicom")
            with tarfile.open(where / f"{name}.tar.xz") as tar:
                tar.extractall(made[name], filter="data")
        return made[name] / name

    return unpack


@pytest.fixture(scope="session")
def made():
    """The synthetic series: what it is made of, and `slice_file`, `series` to write it."""
    return SimpleNamespace(
        rows=ROWS,
        columns=COLUMNS,
        slices=SLICES,
        distance=DISTANCE,
        spacing=SPACING,
        turn=TURN,
        normal=NORMAL,
        position=position,
        pixel=pixel,
        slice_file=slice_file,
        series=series,
        floats=floats,
    )


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
    ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.SeriesNumber, ds.Modality = "1.2", "1.2.9", 7, "MR"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = pixel(k).astype("<i2").tobytes()
    ds.PixelSpacing = list(SPACING)
    ds.ImageOrientationPatient = [round(float(v), 10) for v in (*TURN[:, 0], *TURN[:, 1])]
    ds.ImagePositionPatient = [round(float(v), 10) for v in position(k)]
    ds.SliceThickness, ds.SpacingBetweenSlices, ds.MagneticFieldStrength = 3.0, DISTANCE, 1.5
    ds.MRAcquisitionType, ds.AcquisitionMatrix, ds.ImageType = "2D", [0, 256, 192, 0], ["ORIGINAL", "PRIMARY"]
    for key, value in changes.items():
        if key == "raw":  # elements with bytes that pydicom would not write
            for tag, (vr, held) in value.items():
                ds[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(held), held, 0, False, True)
        elif value is None:
            delattr(ds, key)
        else:
            setattr(ds, key, value)
    path = folder / f"IM{SLICES - k:04d}{changes.get('SeriesInstanceUID', '')}"
    ds.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    for k in range(SLICES):
        slice_file(folder, k, **changes)
    return folder


def floats(folder: Path) -> None:
    """Make the pixels of every slice floating-point numbers, as maps and doses have them."""
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.BitsAllocated, ds.FloatPixelData = 32, ds.pixel_array.astype("<f4").tobytes()
        del ds.PixelData
        ds.save_as(path)
