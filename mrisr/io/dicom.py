"""A DICOM series -> Volume. Reading only; results are written as NIfTI.

Slices are put in order by their position along the normal, whatever their file names or instance numbers say.
The geometry follows DICOM PS3.3 C.7.6.2: ImageOrientationPatient holds the directions of growing column and
row index, PixelSpacing the distance between rows first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mrisr.errors import GeometryError, InputError
from mrisr.volume import ACQUISITION_FACTS, Volume

__all__ = ["is_dicom", "read"]

# Relative to the mean distance of slices: scanners round positions, a missing slice is a whole distance.
UNEVEN = 0.02
ALIKE = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")


def read(source: str | os.PathLike | Iterable[str | os.PathLike], *, series: str | None = None) -> Volume:
    """The volume of one series of single-frame DICOM files, float32 [column, row, slice], RAS affine.

    source  a folder (searched without its subfolders) or the files themselves
    series  SeriesInstanceUID, needed where the files belong to more than one

    Rescale slope and intercept are applied; `.meta` holds ACQUISITION_FACTS as the first slice states them.
    Raises InputError where pydicom is missing, the files are not one series of parallel slices, or one cannot
    be read; GeometryError where slices are missing, doubled or unevenly spaced.
    """
    name, paths = _files(source)
    slices = _one_series(_headers(paths, name), series, name)
    first = slices[0]
    if hasattr(first, "NumberOfFrames"):
        raise InputError(f"{name}: enhanced (multi-frame) DICOM; convert it to NIfTI with dcm2niix first")
    for other in slices[1:]:
        for key in ALIKE:
            if not np.allclose(_numbers(other, key, name), _numbers(first, key, name), atol=1e-4):
                raise InputError(f"{name}: slices differ in {key}; expected one series of parallel slices")
    slices, affine = _geometry(slices, name)
    data = np.stack([_pixels(s, name).T for s in slices], axis=-1)
    meta = {key: _plain(first.get(key)) for key in ACQUISITION_FACTS if first.get(key) is not None}
    return Volume(data, affine, name=name, meta=meta)


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether the file, or any file directly in the folder, carries the signature of DICOM."""
    path = Path(path)
    if path.is_dir():
        return any(is_dicom(p) for p in sorted(path.iterdir()) if p.is_file())
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error


def _files(source: str | os.PathLike | Iterable[str | os.PathLike]) -> tuple[str, list[Path]]:
    if not isinstance(source, (str, os.PathLike)):
        paths = [Path(p) for p in source]
        name = f"{paths[0]} and {len(paths) - 1} more" if paths else "DICOM series"
    elif os.path.isdir(source):
        name, paths = os.fspath(source), [p for p in Path(source).iterdir() if p.is_file() and is_dicom(p)]
    else:
        name, paths = os.fspath(source), [Path(source)]
    if not paths:
        raise InputError(f"{name}: no DICOM file; give the folder that holds the series itself")
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path")
    return name, paths


def _headers(paths: list[Path], name: str) -> list[Any]:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"{name}: DICOM needs pydicom; install it with: pip install 'mrisr[dicom]'") from error
    headers = []
    for path in paths:
        try:
            header = pydicom.dcmread(path)
        except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as DICOM ({error}); copy it again or leave it out") from error
        if "Rows" in header:  # DICOMDIR, reports and the like have no picture
            headers.append(header)
    if not headers:
        raise InputError(f"{name}: the DICOM files hold no pictures; give the folder of an image series")
    return headers


def _one_series(headers: list[Any], series: str | None, name: str) -> list[Any]:
    by_series: dict[str, list[Any]] = {}
    for header in headers:
        by_series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(header)
    if series is None and len(by_series) == 1:
        return headers
    found = "; ".join(f"{uid} ({h[0].get('SeriesDescription', '?')}, {len(h)})" for uid, h in by_series.items())
    if series is None:
        raise InputError(f"{name}: {len(by_series)} series; pick one with series= or keep one: {found}")
    if series not in by_series:
        raise InputError(f"{name}: no series {series}; found {found}")
    return by_series[series]


def _geometry(slices: list[Any], name: str) -> tuple[list[Any], np.ndarray]:
    """The slices in order along their normal, and the affine (4, 4) of (column, row, slice) -> RAS mm."""
    if len(slices) < 2:
        raise InputError(f"{name}: one slice; a single slice cannot be super-resolved, give the whole series")
    orientation = _numbers(slices[0], "ImageOrientationPatient", name)
    along_row, along_column = orientation[:3], orientation[3:]
    normal = np.cross(along_row, along_column)
    slices = sorted(slices, key=lambda s: float(_numbers(s, "ImagePositionPatient", name) @ normal))
    positions = np.array([_numbers(s, "ImagePositionPatient", name) for s in slices])
    steps = np.diff(positions @ normal)
    if steps.min() < 1e-3:
        where = int(np.argmin(steps))
        raise GeometryError(f"{name}: two slices at one position ({where}); give one echo, phase or time point")
    mean = (positions[-1] - positions[0]) / len(steps)
    apart = np.linalg.norm(np.diff(positions, axis=0) - mean, axis=1)
    worst = int(apart.argmax())
    if apart[worst] > UNEVEN * np.linalg.norm(mean):
        raise GeometryError(
            f"{name}: slices {worst} and {worst + 1} lie {steps[worst]:.4g} mm apart, the others "
            f"{np.median(steps):.4g} mm; a slice may be missing, export the series again"
        )
    between_rows, between_columns = _numbers(slices[0], "PixelSpacing", name)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
        along_row * between_columns,
        along_column * between_rows,
        mean,
    )
    affine[:3, 3] = positions[0]
    return slices, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS -> RAS


def _numbers(header: Any, key: str, name: str) -> np.ndarray:
    value = header.get(key)
    if value is None:
        raise InputError(f"{name}: a slice has no {key}; export the series again with its geometry")
    return np.atleast_1d(np.array(value, dtype=np.float64))


def _pixels(header: Any, name: str) -> np.ndarray:
    """Rescaled pixels [row, column], float64."""
    try:
        stored = header.pixel_array
    except (AttributeError, ValueError, RuntimeError, NotImplementedError, ImportError) as error:
        found = " ".join(str(error).split())
        raise InputError(f"{name}: pixels cannot be decoded ({found}); convert with dcm2niix first") from error
    if stored.ndim != 2:
        raise InputError(f"{name}: colour or multi-frame slices, shape {stored.shape}; expected one plane each")
    return stored * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))


def _plain(value: Any) -> Any:
    """pydicom's text, number and list types as Python's own."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Iterable):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, int) else float(value)
