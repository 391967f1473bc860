"""Where training volumes come from: folders and lists of scans and of label maps."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from mrisr.data.labels import LabelVolume
from mrisr.data.pack import PACK_SUFFIX, read_pack
from mrisr.data.resolution import true_resolution
from mrisr.data.volumes import TrainingVolume
from mrisr.errors import InputError, MrisrWarning, TrainingError, opening

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
LABEL_COUNT = 200  # a file of more levels is a scan
AGREE = 0.4  # of neighbours three voxels apart, within the head: labels do, grey levels do not


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
    """Read every scan, label map and pack: `mrisr.data.volumes.TrainingVolume`s and `mrisr.data.labels.LabelVolume`s.

    A broken file is named in a warning and left out, and how many were is said at the end. TrainingError where none is
    left. A broken pack is an InputError: it holds many.
    """
    volumes, broken = [], []
    for path in paths:
        if path.suffix == PACK_SUFFIX:
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
