"""The table of a report: every page below a folder, with the numbers worth sorting by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mrisr.errors import OutputError
from mrisr.io.atomic import replacing
from mrisr.report import render, story
from mrisr.report.folder import FIGURES, INDEX, Place, is_ours, locked, make_folder, place_for, records

__all__ = ["COLUMNS", "write_index"]

# (of Numbers, heading, digits, signed, what it means)
COLUMNS = (
    ("gain", "gain, dB", 1, True, "Power in the synthesised band over that of cubic interpolation: how much was added, "
     "not how much of it is right"),
    ("changed", "changed, %", 2, False, "Root mean square of after − before inside the head, of the intensity window"),
    ("measured", "measured, %", 0, False, "Share of the output's frequencies that the scanner has measured"),
    ("chi2", "χ²", 2, False, "Misfit of the result, degraded as the scan was, over the scan's noise: 1 explains it to "
     "within the noise, less follows the noise too; – where it was not tested"),
    ("seam", "seam, %", 2, False, "Largest difference between neighbouring tiles, of the range; – where there are no "
     "tiles"),
    ("doubt", "doubt, %", 2, False, "Median spread of the samples inside the head, of the intensity window; – where "
     "nothing was sampled"),
    ("warnings", "warnings", 0, False, "Number of warnings"),
)  # fmt: skip


def write_index(folder: Path, *, missing: Sequence[str] = (), title: str = "") -> dict[str, int]:
    """Write index.html of all pages below `folder`; a table that would be the same is left alone.

    Args:
        missing: names of scans that should have a page and have none.
        title: of the dataset.

    Returns:
        How many rows there are of each state: done, failed, missing.

    Raises:
        InputError: a record below `folder` that cannot be read.
        OutputError: an index.html that is not ours.
    """
    make_folder(folder)
    path = folder / INDEX
    with locked(folder):
        if path.exists() and not is_ours(path):
            raise OutputError(f"{path}: was not written by mrisr and stays; give another folder for the report")
        rows = [_row(place_for(folder, name), record) for name, record in records(folder)]
        rows += [{"state": "missing", "name": name, "error": "no page yet"} for name in missing]
        count = {state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "missing")}
        doubtful = sum(bool(row.get("numbers", {}).get("warnings")) for row in rows)
        context = {"rows": rows, "columns": COLUMNS, "count": count, "doubtful": doubtful, "title": title}
        text = render.page("index.html.j2", context)
        if not (path.is_file() and path.read_text(encoding="utf-8") == text):
            with replacing(path, force=True) as beside:
                beside.write_text(text, encoding="utf-8", errors="replace")
    return count


def _row(place: Place, record: dict[str, Any]) -> dict[str, Any]:
    if record["State"] != "done":
        return {"state": "failed", "name": record.get("Scan", place.name), "error": record.get("Error", "")}
    link = place.link
    above = link.rsplit("/", 1)[0] + "/" if "/" in link else ""
    return {
        "state": "done",
        "name": place.name,
        "scan": record["Sidecar"][story.KEY].get("Input", {}).get("Name", ""),
        "link": link,
        "thumbnail": f"{above}{FIGURES}/{quote(place.stem)}/{record['Thumbnail']}",
        "grids": record["Grids"],
        "numbers": record["Numbers"],
        "made": record["Sidecar"][story.KEY].get("Date", ""),
    }
