"""What each axis of a training scan truly resolves: from a sidecar, else as inference would assume it.

`volumes.json` beside the scans has an entry per scan, by its name without endings: "true_mm" (three widths in mm,
"voxel" where they are the voxels', or null where nobody knows) and "x_true_over_voxel", or `<scan>.json` beside one
scan has "true_mm" or BIDS's "AcquisitionVoxelSize". Else `mrisr.physics.psf.auto_psf` says, of the facts that a
sidecar's other entries state ("MRAcquisitionType", "SliceThickness", "AcquiredVoxelSize") and of the spectrum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from mrisr import schema
from mrisr.errors import InputError
from mrisr.physics.acquired import estimate_acquired
from mrisr.physics.psf import auto_psf

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


def true_resolution(path: Path, data: np.ndarray, voxel_size, meta: dict) -> tuple[float, float, float]:
    """mm per axis, the voxel size at least.

    Args:
        path: of the scan, beside or below whose sidecar it lies.
        data: the scan [X, Y, Z], for its spectrum where no sidecar knows.
        voxel_size: mm, 3 values.
        meta: what reading the scan took from its own sidecar, by DICOM keyword.

    Raises:
        InputError: a sidecar whose "true_mm" is none or contradicts the header, or a damaged table.
    """
    size = np.asarray(voxel_size, np.float64)
    stem = path.name.split(".nii")[0].removesuffix(".mgz").removesuffix(".mgh")
    for folder in (path.parent, path.parent.parent):
        if (table := folder / TABLE).is_file():
            scans = schema.check(schema.read(table, largest=LARGEST_FILE), dict[str, Any], str(table))
            if stem in scans:
                return _true_width(scans[stem], size, data, meta, f"{table}: {stem}")
    own = path.with_name(stem + ".json")
    if own.is_file():
        try:
            facts = schema.read(own, largest=LARGEST_FILE, lenient=True)
        except InputError:  # which reading the scan has warned of: it is not used
            return _as_inferred(data, size, meta)
        return _true_width(facts, size, data, meta, str(own))
    return _as_inferred(data, size, meta)


def _true_width(facts: Any, size: np.ndarray, data: np.ndarray, meta: dict, where: str) -> tuple[float, float, float]:
    entry = schema.check(facts, Entry, where)
    true_mm = entry.AcquisitionVoxelSize if entry.true_mm is None else entry.true_mm
    if true_mm == "voxel":
        return tuple(size.tolist())
    if true_mm is None:
        if entry.x_true_over_voxel is None:
            return _as_inferred(data, size, meta)
        return tuple((size * (entry.x_true_over_voxel, 1.0, 1.0)).tolist())
    true = np.asarray(true_mm, np.float64)
    if (true < FINER * size).any():
        raise InputError(
            f"{where}: {' x '.join(f'{v:.3g}' for v in true)} mm contradicts the header, whose voxels are "
            f"{' x '.join(f'{v:.3g}' for v in size)} mm: expected those at least"
        )
    return tuple(np.maximum(true, size).tolist())


def _as_inferred(data: np.ndarray, size: np.ndarray, meta: dict) -> tuple[float, float, float]:
    spectrum = None if "AcquiredVoxelSize" in meta else [axis.width for axis in estimate_acquired(data, size)]
    return tuple(max(float(p.width), v) for p, v in zip(auto_psf(size, meta, spectrum)[0], size.tolist()))
