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
LABEL_COUNT = 200  # of more levels the commonest is left out of what follows: it may be a scan's background
AGREE = 0.4  # of neighbours three voxels apart, within the head: labels do, grey levels do not
WHOLE = 1e-3  # so near to a whole number is one
MOSTLY_WHOLE = 0.4  # of a label map that was interpolated linearly, which has fractions at its edges
# Of one that was interpolated by a spline, which ripples inside of structures, too, but ever less: of 67 people's label
# maps, by cubic splines, 1.7 to 35 % are whole there, and 98 % of neighbours agree. Of scans in fractions 0.6 % are at
# most, where their grey levels do not lie on a few steps, as `DIFFERENT` tells.
CORES, CORES_AGREE, DIFFERENT = 0.01, 0.9, 0.1
COMMON = 0.01  # of what is labelled: a label that counts


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
        message = f"{len(broken)} of {len(paths)} scans were left out: {', '.join(broken)}"
        warnings.warn(message, MrisrWarning, stacklevel=2)
    return volumes


def _read(path: Path) -> list:
    from mrisr.io import nifti  # here, so that training on packed data needs no nibabel

    volume = nifti.read(path)
    frames = [(frame, f"{path.name}[{i}]") for i, frame in enumerate(volume.frames())]
    if _holds_labels(volume.data, path.name):
        return [LabelVolume.from_array(frame, volume.voxel_size, name) for frame, name in frames]
    true = true_resolution(path, frames[0][0], volume.voxel_size)
    return [TrainingVolume.from_array(frame, volume.voxel_size, name, true) for frame, name in frames]


def _holds_labels(data: np.ndarray, name: str) -> bool:
    """Whether a file holds labels: whole numbers in patches whose neighbours agree; a scan's hardly ever do.

    InputError: labels that an interpolation has made fractions of: they are no scan to learn from. Where these were
    rounded afterwards, or stored in steps of more than `WHOLE`, nothing tells wrong labels from true ones for certain.
    """
    sample = data[::3, ::3, ::3]
    nearest = np.rint(sample)
    head = nearest != 0
    labelled = head & (np.abs(sample - nearest) < WHOLE)
    if not labelled.any():
        return False
    levels, counts = np.unique(nearest[labelled], return_counts=True)
    inside = labelled
    if len(levels) > LABEL_COUNT:  # as parcellations have, and scans: those may have a background of one value
        inside = inside & (nearest != levels[counts.argmax()])
    pairs = inside[1:] & inside[:-1]
    agreement = float((nearest[1:] == nearest[:-1])[pairs].mean()) if pairs.any() else 0.0
    if (sample == nearest).all():
        return agreement > AGREE
    part, common = labelled.sum() / head.sum(), int((counts > COMMON * counts.sum()).sum())
    linear = part >= MOSTLY_WHOLE and agreement > AGREE and common > 1  # one: a scan on a background of one value
    if linear or (part >= CORES and agreement > CORES_AGREE and common > 2 and _differ(sample[head & ~labelled])):
        raise InputError(
            f"{name}: expected whole numbers in a label map, found {1 - part:.0%} fractions: was it interpolated? "
            "Resample labels by their nearest neighbour"
        )
    return False


def _differ(values: np.ndarray) -> bool:
    """Whether few values come twice, as a spline makes them; the grey levels of a scan do, also of a scaled one."""
    return len(np.unique(values)) > DIFFERENT * len(values)
