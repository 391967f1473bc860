"""What each axis of a training scan truly resolves: from a sidecar, else from the spectrum.

`volumes.json` beside the scans has an entry per scan, by its name without endings: "true_mm" (three widths in mm,
"voxel" where they are the voxels', or null where nobody knows) and "x_true_over_voxel", or `<scan>.json` beside one
scan has "true_mm" or BIDS's "AcquisitionVoxelSize".
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mrisr.errors import InputError
from mrisr.physics.acquired import estimate_acquired

TABLE = "volumes.json"
FINER = 0.93  # of a voxel: a true resolution below that contradicts the header
COARSEST = 20.0  # mm
LARGEST_FILE = 4_000_000  # bytes


def true_resolution(path: Path, data: np.ndarray, voxel_size) -> tuple[float, float, float]:
    """mm per axis, the voxel size at least. InputError: a sidecar that is damaged or contradicts the header."""
    size = np.asarray(voxel_size, np.float64)
    stem = path.name.split(".nii")[0].removesuffix(".mgz").removesuffix(".mgh")
    for folder in (path.parent, path.parent.parent):
        if (table := folder / TABLE).is_file():
            entry = _object(table).get(stem)
            if entry is not None:
                return _stated(entry, size, data, f"{table}: {stem}")
    own = path.with_name(stem + ".json")
    if own.is_file():
        entry = _object(own)
        if "true_mm" in entry or "AcquisitionVoxelSize" in entry:
            return _stated({"true_mm": entry.get("true_mm", entry.get("AcquisitionVoxelSize"))}, size, data, str(own))
    return _of_spectrum(data, size)


def _object(path: Path) -> dict:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: is larger than {LARGEST_FILE} bytes; expected a sidecar of a few kilobytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable sidecar ({error}); mend it or take it away") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected an object of names, found {type(found).__name__}")
    return found


def _stated(entry, size: np.ndarray, data: np.ndarray, where: str) -> tuple[float, float, float]:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object with true_mm, found {type(entry).__name__}")
    stated, ratio = entry.get("true_mm"), entry.get("x_true_over_voxel")
    if stated == "voxel":
        return tuple(size.tolist())
    if stated is None:
        if ratio is None:
            return _of_spectrum(data, size)
        if not _number(ratio) or not 1 <= ratio <= 10:
            raise InputError(f"{where}: x_true_over_voxel: expected a number from 1 to 10, found {ratio!r}")
        return tuple((size * (ratio, 1.0, 1.0)).tolist())
    if not (isinstance(stated, list) and len(stated) == 3 and all(map(_number, stated))):
        raise InputError(f"{where}: true_mm: expected three numbers, 'voxel' or null, found {stated!r}")
    true = np.asarray(stated, np.float64)
    if (true < FINER * size).any() or (true > COARSEST).any():
        raise InputError(
            f"{where}: true_mm {stated} contradicts the header, whose voxels are "
            f"{' x '.join(f'{v:.3g}' for v in size)} mm: expected those at least, and {COARSEST:g} mm at most"
        )
    return tuple(np.maximum(true, size).tolist())


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _of_spectrum(data: np.ndarray, size: np.ndarray) -> tuple[float, float, float]:
    return tuple(float(axis.width) for axis in estimate_acquired(data, size))
