"""For the command line: a small scan, untrained weights, and a call that returns what a shell would see."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest

from mrisr.cli.main import main
from tests.alone import alone, no_network  # noqa: F401 - fixtures


@dataclass(frozen=True)
class Ending:
    """How a command ended: exit code, stdout, stderr, and the lines of stderr that are errors."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("mrisr: error:")]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("mrisr: warning:")]


@pytest.fixture
def mrisr_command(capfd):
    """call(*words) -> Ending; runs in this process."""

    def call(*words) -> Ending:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Ending(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def scan(tmp_path_factory, head):
    """Path of a NIfTI head of 24 x 26 x 22 voxels of 2 mm, int16, with a moved origin."""
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (20, -30, -10)
    nib.save(nib.Nifti1Image(head((24, 26, 22)).astype(np.int16), affine), path)
    return path


@pytest.fixture
def study(tmp_path, head):
    """A folder with two series of one study: 5 (the head) and 6 (its mirror image)."""
    pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")
    folder = tmp_path / "study"
    folder.mkdir()
    voxels = head((24, 26, 12)).clip(0, 4000).round().astype("<u2")
    for number in (5, 6):
        for k in range(voxels.shape[2]):
            ds = pydicom.Dataset()
            ds.file_meta = pydicom.dataset.FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            ds.SOPClassUID, ds.SOPInstanceUID = pydicom.uid.MRImageStorage, f"1.2.{number}.{k + 1}"
            ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID = "MR", "1.2", f"1.2.{number}"
            ds.SeriesNumber, ds.SeriesDescription, ds.FrameOfReferenceUID = number, f"T{number}w", "1.2.9"
            ds.PatientName, ds.PatientID, ds.InstanceNumber = "A^B", "1", k + 1
            ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 26, 24, 1, "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
            ds.PixelSpacing, ds.ImageOrientationPatient = [2, 2], [1, 0, 0, 0, 1, 0]
            ds.ImagePositionPatient, ds.SliceThickness = [0, 0, 4.0 * k], 4
            plane = voxels[..., k].T
            ds.PixelData = (plane if number == 5 else plane[:, ::-1]).tobytes()
            ds.save_as(folder / f"{number}_{k:02d}.dcm", enforce_file_format=True)
    return folder
