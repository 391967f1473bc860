"""A head-like phantom, stacks of thick slices of it, and DICOM series of any volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrisr.grid import Grid, plan
from mrisr.physics.psf import AxisPSF
from mrisr.physics.stack import StackModel
from mrisr.volume import Volume

SIZE, THICK = 40, 4
FINE = Grid((SIZE,) * 3, np.eye(4))


def phantom(seed: int = 0) -> np.ndarray:
    """Folds of all scales and directions, none along the axes, in an ellipsoid with a bright rim."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, SIZE),) * 3, indexing="ij"))
    radius = np.sqrt((at**2 / np.array([0.9, 0.8, 0.85])[:, None, None, None] ** 2).sum(0))
    folds = np.zeros_like(radius)
    for _ in range(24):
        wave, phase = rng.uniform(-22, 22, 3), rng.uniform(0, 2 * np.pi)
        folds += np.sin(np.tensordot(wave, at, 1) + phase)
    inside = 1 / (1 + np.exp(25 * (radius - 0.9)))
    return (inside * (500 + 60 * folds) + 300 * np.exp(-(((radius - 0.9) / 0.06) ** 2))).astype(np.float32)


def stack(
    truth: np.ndarray,
    axis: int,
    moved=None,
    noise: float = 0.0,
    *,
    voxels=(1.0, 1.0, THICK),
    degrees=0.0,
    part=(0.0, 1.0),
) -> Volume:
    """Slices across an axis of the phantom.

    moved: the head, as of `StackModel`. voxels: in plane, and across. degrees: the stack is turned by, about two axes.
    part: which of the slices there are, from 0 to 1.
    """
    sizes = [*voxels[:2]]
    sizes.insert(axis, voxels[2])
    grid = plan(FINE, voxel_size=tuple(sizes))
    first, end = (int(p * grid.shape[axis]) for p in part)
    shape = tuple(end - first if a == axis else n for a, n in enumerate(grid.shape))
    start = np.eye(4)
    start[axis, 3] = first
    grid = Grid(shape, _turned(degrees) @ grid.affine @ start)
    psf = tuple(AxisPSF("gaussian" if a == axis else "kspace", v) for a, v in enumerate(grid.voxel_size))
    values = StackModel.of(FINE, grid, psf, moved).forward(torch.from_numpy(truth)).numpy()
    values += noise * np.random.default_rng(axis).standard_normal(values.shape)
    return Volume(values.astype(np.float32), grid.affine, name=("sagittal", "coronal", "axial")[axis])


def _turned(degrees: float) -> np.ndarray:
    """[4, 4] mm to mm: by so much about z, and then about x, at the phantom's centre."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.eye(4)
    turn[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    turn[:3, 3] = FINE.center - turn[:3, :3] @ FINE.center
    return turn


def series(volume, folder, number: int, **facts):
    """A volume as a DICOM series of one study, slices along the axis of the coarsest voxels; facts: other elements."""
    pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    across = int(np.argmax(volume.voxel_size))
    inside = [a for a in range(3) if a != across]
    place = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    for k in range(volume.data.shape[across]):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = pydicom.uid.MRImageStorage, f"1.2.{number}.{k + 1}"
        ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID = "MR", "1.2", f"1.2.{number}"
        ds.SeriesNumber, ds.SeriesDescription, ds.FrameOfReferenceUID = number, f"T1w {number}", "1.2.9"
        ds.PatientName, ds.PatientID, ds.InstanceNumber = "A^B", "1", k + 1
        ds.EchoTime, ds.RepetitionTime = 10, 500
        plane = np.take(volume.data, k, axis=across).clip(0).round().astype("<u2").T  # [row, column]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *plane.shape, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelSpacing = [volume.voxel_size[inside[1]], volume.voxel_size[inside[0]]]
        ds.ImageOrientationPatient = [v for a in inside for v in place[:3, a] / volume.voxel_size[a]]
        index = np.zeros(4)
        index[[across, 3]] = k, 1
        ds.ImagePositionPatient, ds.SliceThickness = [*(place @ index)[:3]], volume.voxel_size[across]
        for keyword, value in facts.items():
            setattr(ds, keyword, value)
        ds.PixelData = np.ascontiguousarray(plane).tobytes()
        ds.save_as(folder / f"{number}_{k:02d}.dcm", enforce_file_format=True)
    return folder
