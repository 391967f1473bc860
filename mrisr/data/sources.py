"""Where training volumes come from: folders and lists of scans and of label maps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mrisr.data.labels import LabelVolume, spread_points
from mrisr.data.resolution import true_resolution
from mrisr.errors import InputError, MrisrWarning, TrainingError, opening
from mrisr.physics.intensity import FOREGROUND, estimate_noise, intensity_scale
from mrisr.physics.psf import THICK_SLICE_RATIO

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
PACK_SUFFIX = ".pack"  # of `mrisr.data.pack`
MASKED = 0.1  # of the voxels, of one same lowest value
LABEL_COUNT = 200  # a file of more levels is a scan
AGREE = 0.4  # of neighbours three voxels apart, within the head: labels do, grey levels do not


@dataclass(frozen=True)
class TrainingVolume:
    """A fine volume to learn from.

    Attributes:
        data: float32 [X, Y, Z], normalised by `intensity_scale`.
        voxel_size: mm, 3 values.
        true_mm: what each axis truly resolves, the voxel size or more; nothing is degraded from less.
        fine_axes: which axes are fine enough to be degraded (the slice axis of a 2D scan is not).
        centres: int64 [K, 3], foreground voxels to centre patches on.
        name: for messages.
        noise: standard deviation / intensity scale of the scan's own noise.
        masked: the background is one constant: somebody has cut it out.
    """

    data: torch.Tensor
    voxel_size: tuple[float, float, float]
    true_mm: tuple[float, float, float]
    fine_axes: tuple[bool, bool, bool]
    centres: torch.Tensor
    name: str
    noise: float
    masked: bool

    @classmethod
    def from_array(cls, data: np.ndarray, voxel_size, name: str, true_mm=None) -> TrainingVolume:
        """From a scan [X, Y, Z]; true_mm None: what its voxels say."""
        offset, scale = intensity_scale(data)
        normalised = torch.from_numpy(((data - offset) / scale).astype(np.float32))
        inside = spread_points(normalised > FOREGROUND)
        if not len(inside):
            raise InputError(
                f"{name}: no voxel is above {FOREGROUND:.0%} of the intensity scale; nothing to learn from"
            )
        return cls.of(normalised, voxel_size, voxel_size if true_mm is None else true_mm, inside, name)

    @classmethod
    def of(cls, data: torch.Tensor, voxel_size, true_mm, centres: torch.Tensor, name: str) -> TrainingVolume:
        """From normalised intensities; what follows from them and the resolution is worked out here."""
        true = tuple(map(float, true_mm))
        fine = tuple(bool(t < THICK_SLICE_RATIO * min(true)) for t in true)
        masked = float((data == data.min()).float().mean()) > MASKED
        noise = estimate_noise(data) or 0.0
        return cls(data, tuple(map(float, voxel_size)), true, fine, centres, name, noise, masked)


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


def load_volumes(paths: list[Path]) -> list:
    """Read every scan, label map and pack: `TrainingVolume`s and `mrisr.data.labels.LabelVolume`s.

    A broken file is named in a warning and left out, and how many were is said at the end. TrainingError where none is
    left. A broken pack is an InputError: it holds many.
    """
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


def _read(path: Path) -> list:
    from mrisr.io import nifti  # here, so that training on packed data needs no nibabel

    volume = nifti.read(path)
    frames = [(frame, f"{path.name}[{i}]") for i, frame in enumerate(volume.frames())]
    if _holds_labels(volume.data):
        return [LabelVolume.from_array(frame, volume.voxel_size, name) for frame, name in frames]
    true = true_resolution(path, frames[0][0], volume.voxel_size)
    return [TrainingVolume.from_array(frame, volume.voxel_size, name, true) for frame, name in frames]


def _holds_labels(data: np.ndarray) -> bool:
    """Whether a file holds labels: few whole numbers, in patches whose neighbours agree; a scan's hardly ever do."""
    sample = data[::3, ::3, ::3]
    if not np.array_equal(sample, np.rint(sample)) or len(np.unique(sample)) > LABEL_COUNT:
        return False
    head = sample != 0
    pairs = head[1:] & head[:-1]
    return bool(pairs.any()) and float((sample[1:] == sample[:-1])[pairs].mean()) > AGREE
