"""The pages of a report (`mrisr.report`) and the scans that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrisr import report, schema
from mrisr.batch import provenance
from mrisr.batch.scans import Scan
from mrisr.errors import CATCHING, InputError
from mrisr.io import dicom, nifti

__all__ = ["complete", "group", "place_of", "table"]


def place_of(scan: Scan, folder: Path, below: Path | None = None) -> report.Place:
    """The page of a result in the report `folder`: its name without the ending, with its folders below `below`."""
    place = Path(scan.target.name) if below is None else scan.target.relative_to(below)
    ending = nifti.ending_of(place) or ""
    return report.place_for(folder, place.as_posix()[: -len(ending) or None])


def complete(scan: Scan, place: report.Place, identity: dict[str, Any]) -> None:
    """The page of a result that is there already, from the result and its sidecar, unless the page is there too.

    What the samples' spread was is not stored in them: such a page shows none.
    """
    if report.is_current(place, identity):
        return
    report.check(place, force=True)
    with CATCHING:  # nibabel has one logger, which reading swaps
        source, _ = scan.read()
        result = dicom.find(scan.target).volume() if scan.to_dicom else nifti.read(scan.target, scan=False)
    record = schema.read(provenance.sidecar_path(scan.target), largest=provenance.LARGEST)
    report.write(place, source, result, record, force=True)


def table(scans: Sequence[Scan], outcomes: Sequence[Any], folder: Path, below: Path) -> None:
    """The table of the report after a run, with what has failed in it (`mrisr.batch.run.Outcome`)."""
    for scan, outcome in zip(scans, outcomes, strict=True):
        if outcome.state == "failed":
            report.failed(place_of(scan, folder, below), scan.name, outcome.error)
    report.write_index(folder)


def group(scans: Sequence[Scan], folder: Path, title: str = "") -> dict[str, int]:
    """The table of a dataset: the pages that the runs of its participants have left, with whatever options, and which
    scans have none.

    Returns how many there are of each state. InputError where there is none at all.
    """
    names = {_of(record) for _, record in report.records(folder)} if folder.is_dir() else set()
    if not names:
        raise InputError(f"{folder}: holds no page of a scan; run the participants with --report {folder} before")
    missing = [scan.name for scan in scans if scan.name not in names]
    return report.write_index(folder, missing=missing, title=title)


def _of(record: dict[str, Any]) -> str:
    """The name of the scan that a record of a report is of."""
    if "Scan" in record:  # one that has failed
        return record["Scan"]
    return record["Sidecar"][provenance.KEY].get("Input", {}).get("Name", "")
