"""Several scans of one head, read together: what a list of scans is, and whether their headers are of one head."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

from mrisr.errors import InputError, MrisrWarning, UsageError, opening
from mrisr.io.adapters import to_volume
from mrisr.io.kinds import check_kind
from mrisr.volume import Volume

__all__ = ["Statement", "check_one_head", "listed", "read"]

OF_ONE_HEAD = {"PatientID": "patient", "StudyInstanceUID": "study", "FrameOfReferenceUID": "frame of reference"}
CONTRAST, ALIKE = ("EchoTime", "RepetitionTime", "InversionTime"), 0.35  # so much of it two of one contrast differ


@dataclass(frozen=True)
class Statement:
    """What a scan's header or sidecar states of whose it is and how it was weighted.

    Attributes:
        name: of the scan.
        identity: those of `OF_ONE_HEAD` that are stated.
        times: those of `CONTRAST`, ms.
    """

    name: str
    identity: dict[str, str]
    times: dict[str, float]

    @classmethod
    def of_series(cls, series: Any) -> Statement:
        """series: of `mrisr.io.dicom.find`."""
        identity = {keyword: series.values.text(keyword) for keyword in OF_ONE_HEAD}
        return cls(series.name, identity, {keyword: series.values.number(keyword) for keyword in CONTRAST})

    @classmethod
    def of_image(cls, path: str | os.PathLike, sidecars: Sequence[Path] | None = None) -> Statement:
        """By the sidecars of an image, as `mrisr.io.nifti.sidecar_facts` finds them."""
        from mrisr.io import nifti

        kinds = dict.fromkeys(OF_ONE_HEAD, str) | dict.fromkeys(CONTRAST, float)
        facts = nifti.sidecar_facts(Path(path), sidecars, kinds)
        times = {keyword: 1000 * facts[keyword] for keyword in CONTRAST if keyword in facts}  # s, by BIDS
        return cls(os.fspath(path), {k: facts[k] for k in OF_ONE_HEAD if k in facts}, times)


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
    volumes, kinds, statements = [], [], []
    for scan in scans:
        of_dicom = _dicom(scan, series, group)
        if of_dicom is not None:
            statements.append(Statement.of_series(of_dicom))
            volume, restore = of_dicom.volume(), nifti_image
        else:
            volume, restore = to_volume(scan)
            statements += [Statement.of_image(scan)] if isinstance(scan, (str, os.PathLike)) else []
        check_kind(volume)
        volumes.append(volume)
        kinds.append(restore)
    check_one_head(statements, force)
    from mrisr.io.headers import places

    for volume in volumes:
        if not places(volume.header):
            _refuse(f"{volume.name}: its header does not say where it lies (no sform, no qform)", force)
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


def check_one_head(scans: Sequence[Statement], force: bool = False) -> None:
    """InputError (a MrisrWarning with `force`) where scans are of two patients, studies, positions or contrasts."""
    for other in scans[1:]:
        text = _difference(scans[0], other)
        if text:
            _refuse(text, force)


def _refuse(text: str, force: bool) -> None:
    if not force:
        raise InputError(f"{text}; leave it out, or force the join")
    warn(f"{text}: joined all the same", MrisrWarning, stacklevel=4)


def _difference(first: Statement, other: Statement) -> str:
    for keyword, words in OF_ONE_HEAD.items():
        one, two = (s.identity.get(keyword) for s in (first, other))
        if one and two and one != two:
            return f"{other.name}: is of another {words} than {first.name} ({keyword})"
    for keyword in CONTRAST:
        one, two = (s.times.get(keyword) for s in (first, other))
        if one and two and abs(one - two) > ALIKE * max(one, two):
            return f"{other.name}: has another contrast than {first.name} ({keyword} {two:g} and {one:g} ms)"
    return ""
