"""Several scans of one head, read together: what a list of scans is, and whether their headers are of one head."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any
from warnings import warn

from mrisr.errors import InputError, MrisrWarning, UsageError, opening
from mrisr.io.adapters import to_volume
from mrisr.io.kinds import check_kind
from mrisr.volume import Volume

__all__ = ["check_one_head", "listed", "read"]

OF_ONE_HEAD = (("PatientID", "patient"), ("StudyInstanceUID", "study"), ("FrameOfReferenceUID", "frame of reference"))
CONTRAST, ALIKE = ("EchoTime", "RepetitionTime", "InversionTime"), 0.35  # ms; so much of it two of one contrast differ


def listed(scans: Sequence[Any], reference: int) -> list[Any]:
    """The scans of a list; UsageError where there is none, one is an array without a place, or `reference` is none."""
    if not scans:
        raise UsageError("volume: the list is empty; give the scans of one head to join, or one scan")
    for scan in scans if len(scans) > 1 else ():
        if type(scan).__module__.partition(".")[0] in ("numpy", "torch"):
            raise UsageError(
                "volume: an array in a list has no place in space, by which scans are joined; give "
                "mrisr.Volume(array, affine), paths or images"
            )
    whole = not isinstance(reference, bool) and hasattr(reference, "__index__")
    if not whole or not 0 <= reference < len(scans):
        raise UsageError(f"reference: expected a number from 0 to {len(scans) - 1}, found {reference!r}")
    return list(scans)


def read(
    scans: Sequence[Any], reference: int, series: Any = None, group: Any = None, force: bool = False
) -> tuple[list[Volume], Callable[[Volume], Any]]:
    """(the volumes, what makes of a result the kind of scan that `reference` is)."""
    volumes, kinds, of_path = [], [], []
    for scan in scans:
        of_dicom = _dicom(scan, series, group)
        if of_dicom is None:
            volume, restore = to_volume(scan)
        else:
            of_path.append(of_dicom)
            volume, restore = of_dicom.volume(), nifti_image
        check_kind(volume)
        volumes.append(volume)
        kinds.append(restore)
    check_one_head(of_path, force)
    return volumes, kinds[reference]


def nifti_image(result: Volume) -> Any:
    """What a result of a DICOM path becomes."""
    from mrisr.io import nifti

    return nifti.to_image(result)


def _dicom(scan: Any, series: Any, group: Any) -> Any:
    """The DICOM series of a path; None where it is something else."""
    if not isinstance(scan, (str, os.PathLike)) or not os.fspath(scan).strip():
        return None
    from mrisr.io import dicom

    with opening(scan):
        is_dicom = dicom.is_dicom(scan)
    return dicom.find(scan, series=series, group=group) if is_dicom else None


def check_one_head(series: Sequence[Any], force: bool = False) -> None:
    """InputError (a MrisrWarning with `force`) where DICOM series are of two patients, studies, positions or contrasts.

    series: of `mrisr.io.dicom.find`.
    """
    for other in series[1:]:
        text = _difference(series[0], other)
        if text and force:
            warn(f"{text}: joined all the same", MrisrWarning, stacklevel=3)
        elif text:
            raise InputError(f"{text}; leave it out, or force the join")


def _difference(first: Any, other: Any) -> str:
    for keyword, words in OF_ONE_HEAD:
        one, two = (s.values.text(keyword) for s in (first, other))
        if one and two and one != two:
            return f"{other.name}: is of another {words} than {first.name} ({keyword})"
    for keyword in CONTRAST:
        one, two = (s.values.number(keyword) for s in (first, other))
        if one and two and abs(one - two) > ALIKE * max(one, two):
            return f"{other.name}: has another contrast than {first.name} ({keyword} {two:g} and {one:g} ms)"
    return ""
