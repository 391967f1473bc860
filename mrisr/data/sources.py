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
from mrisr.io import label_maps

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")


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
    volumes, broken, kinds = [], [], {}
    for path in paths:
        if path.suffix == PACK_SUFFIX:
            volumes += read_pack(path)
            continue
        try:
            volumes += _read(path)
            kinds.setdefault(path.parent, {}).setdefault(type(volumes[-1]), []).append(path.name)
        except InputError as error:
            broken.append(path.name)
            warnings.warn(f"left out of training: {error}", MrisrWarning, stacklevel=2)
    for folder, names in kinds.items():
        if len(names) > 1:
            maps = ", ".join(names[LabelVolume])
            message = f"{folder}: holds scans and label maps; these are taken for label maps, by their voxels: {maps}"
            warnings.warn(message, MrisrWarning, stacklevel=2)
    if not volumes:
        raise TrainingError(f"none of the {len(paths)} scans could be read ({len(broken)} broken): nothing to train on")
    if broken:
        message = f"{len(broken)} of {len(paths)} scans were left out: {', '.join(broken)}"
        warnings.warn(message, MrisrWarning, stacklevel=2)
    return volumes


def _read(path: Path) -> list:
    from mrisr.io import nifti  # here, so that training on packed data needs no nibabel

    volume = nifti.read(path)
    frames = [(frame, f"{path.name}[{i}]") for i, frame in enumerate(volume.frames())]
    if _holds_labels(volume.data, path.name):
        return [LabelVolume.from_array(frame, volume.voxel_size, name) for frame, name in frames]
    true = true_resolution(path, frames[0][0], volume.voxel_size, volume.meta)
    return [TrainingVolume.from_array(frame, volume.voxel_size, name, true) for frame, name in frames]


def _holds_labels(data: np.ndarray, name: str) -> bool:
    """Whether a file holds labels. InputError: labels between whole numbers, which are no scan to learn from."""
    part = label_maps.fractions(data[::3, ::3, ::3])
    if part:
        share = f"{part:.1%}" if part >= 0.001 else "less than 0.1%"
        raise InputError(
            f"{name}: expected whole numbers in a label map, found {share} fractions: was it interpolated? "
            "Resample labels by their nearest neighbour"
        )
    return part is not None
