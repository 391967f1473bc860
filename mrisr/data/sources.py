"""Where training volumes come from: a folder of scans, a list of them, synthetic ones."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mrisr.errors import InputError, MrisrWarning, TrainingError, opening
from mrisr.physics.intensity import FOREGROUND, intensity_scale
from mrisr.physics.psf import THICK_SLICE_RATIO

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
PACK_SUFFIX = ".pack"  # of `mrisr.data.pack`


@dataclass(frozen=True)
class TrainingVolume:
    """A fine volume to learn from.

    Attributes:
        data: float32 [X, Y, Z], normalised by `intensity_scale`.
        voxel_size: mm, 3 values.
        fine_axes: which axes are fine enough to be degraded (the slice axis of a 2D scan is not).
        centres: int64 [K, 3], foreground voxels to centre patches on.
        name: for messages.
    """

    data: torch.Tensor
    voxel_size: tuple[float, float, float]
    fine_axes: tuple[bool, bool, bool]
    centres: torch.Tensor
    name: str

    @classmethod
    def from_array(cls, data: np.ndarray, voxel_size, name: str) -> TrainingVolume:
        offset, scale = intensity_scale(data)
        normalised = torch.from_numpy(((data - offset) / scale).astype(np.float32))
        inside = torch.nonzero(normalised > FOREGROUND)
        if not len(inside):
            raise InputError(
                f"{name}: no voxel is above {FOREGROUND:.0%} of the intensity scale; nothing to learn from"
            )
        size = np.asarray(voxel_size, np.float64)
        fine = tuple(bool(s < THICK_SLICE_RATIO * size.min()) for s in size)
        # Every k-th foreground voxel: enough to reach everywhere, small enough to keep.
        return cls(normalised, tuple(map(float, size)), fine, inside[:: max(1, len(inside) // 50_000)], name)


def find_scans(source: str | Path | list) -> list[Path]:
    """Scans of a folder and of the folders below it (in the order of their paths), or the given list of files."""
    with opening(source):
        if isinstance(source, list | tuple):
            paths = [Path(p) for p in source]
        elif Path(source).is_dir():
            paths = sorted(p for p in Path(source).rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
        else:
            paths = [Path(source)]
    if not paths:
        raise TrainingError(f"{source}: no scan found; expected files ending in {', '.join(SUFFIXES)}")
    return paths


def load_volumes(paths: list[Path]) -> list[TrainingVolume]:
    """Read every scan and every pack; a broken scan is named in a warning and left out, and how many were is said at
    the end. TrainingError where none is left. A broken pack is an InputError: it holds many."""
    volumes, broken = [], []
    for path in paths:
        if path.suffix == PACK_SUFFIX:
            from mrisr.data.pack import read_pack

            volumes += read_pack(path)
            continue
        try:
            volumes += _read(path)
        except InputError as error:
            broken.append(path.name)
            warnings.warn(f"left out of training: {error}", MrisrWarning, stacklevel=2)
    if not volumes:
        raise TrainingError(f"none of the {len(paths)} scans could be read ({len(broken)} broken): nothing to train on")
    if broken:
        said = f"{len(broken)} of {len(paths)} scans were left out: {', '.join(broken)}"
        warnings.warn(said, MrisrWarning, stacklevel=2)
    return volumes


def _read(path: Path) -> list[TrainingVolume]:
    from mrisr.io import nifti  # here, so that training on packed data needs no nibabel

    volume = nifti.read(path)
    frames = enumerate(volume.frames())
    return [TrainingVolume.from_array(frame, volume.voxel_size, f"{path.name}[{i}]") for i, frame in frames]
