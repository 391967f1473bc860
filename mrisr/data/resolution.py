"""What each axis of a training scan truly resolves: from a sidecar, else from the spectrum.

`volumes.json` beside the scans has an entry per scan, by its name without endings: "true_mm" (three widths in mm,
"voxel" where they are the voxels', or null where nobody knows) and "x_true_over_voxel", or `<scan>.json` beside one
scan has "true_mm" or BIDS's "AcquisitionVoxelSize".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from mrisr import schema
from mrisr.errors import InputError
from mrisr.physics.acquired import estimate_acquired

TABLE = "volumes.json"
FINER = 0.93  # of a voxel: a true resolution below that contradicts the header
COARSEST = 20.0  # mm
LARGEST_FILE = 4_000_000  # bytes

Width = Annotated[float, Meta(gt=0, le=COARSEST)]
Widths = Annotated[list[Width], Meta(min_length=3, max_length=3)]


class Entry(Struct):
    """What a sidecar says of a scan; whatever else stands there is not for training."""

    true_mm: Widths | Literal["voxel"] | None = None
    x_true_over_voxel: Annotated[float, Meta(ge=1, le=10)] | None = None
    AcquisitionVoxelSize: Widths | None = None


def true_resolution(path: Path, data: np.ndarray, voxel_size) -> tuple[float, float, float]:
    """mm per axis, the voxel size at least.

    Args:
        path: of the scan, beside or below whose sidecar it lies.
        data: the scan [X, Y, Z], for its spectrum where no sidecar knows.
        voxel_size: mm, 3 values.

    Raises:
        InputError: a sidecar that is damaged or contradicts the header.
    """
    size = np.asarray(voxel_size, np.float64)
    stem = path.name.split(".nii")[0].removesuffix(".mgz").removesuffix(".mgh")
    for folder in (path.parent, path.parent.parent):
        if (table := folder / TABLE).is_file():
            scans = schema.check(schema.read(table, largest=LARGEST_FILE), dict[str, Any], str(table))
            if stem in scans:
                return _true_width(scans[stem], size, data, f"{table}: {stem}")
    own = path.with_name(stem + ".json")
    if own.is_file():
        return _true_width(schema.read(own, largest=LARGEST_FILE, lenient=True), size, data, str(own))
    return _of_spectrum(data, size)


def _true_width(facts: Any, size: np.ndarray, data: np.ndarray, where: str) -> tuple[float, float, float]:
    entry = schema.check(facts, Entry, where)
    true_mm = entry.AcquisitionVoxelSize if entry.true_mm is None else entry.true_mm
    if true_mm == "voxel":
        return tuple(size.tolist())
    if true_mm is None:
        if entry.x_true_over_voxel is None:
            return _of_spectrum(data, size)
        return tuple((size * (entry.x_true_over_voxel, 1.0, 1.0)).tolist())
    true = np.asarray(true_mm, np.float64)
    if (true < FINER * size).any():
        raise InputError(
            f"{where}: {' x '.join(f'{v:.3g}' for v in true)} mm contradicts the header, whose voxels are "
            f"{' x '.join(f'{v:.3g}' for v in size)} mm: expected those at least"
        )
    return tuple(np.maximum(true, size).tolist())


def _of_spectrum(data: np.ndarray, size: np.ndarray) -> tuple[float, float, float]:
    return tuple(float(axis.width) for axis in estimate_acquired(data, size))
