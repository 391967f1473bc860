"""One scan's page: pictures, volumes and numbers in its folder of figures, and the HTML that shows them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mrisr.errors import InputError
from mrisr.io.atomic import replacing
from mrisr.report import render, story
from mrisr.report.folder import FIGURES, FORMAT, RECORD, Place, make_folder, put, read_record
from mrisr.report.spectrum import spectra
from mrisr.report.views import LETTERS, PLANES, WINDOW_SHARE, Pair, pair
from mrisr.report.volumes import scripts
from mrisr.volume import Volume

__all__ = ["failed", "is_current", "write"]


def write(
    place: Place,
    source: Volume,
    result: Volume,
    record: dict[str, Any],
    *,
    spread: Volume | None = None,
    title: str = "",
    force: bool = False,
) -> None:
    """Write a scan's page and figures, whole or not at all. The table is `write_index`'s.

    Args:
        source, result: as `mrisr.upscale` takes and gives them; of 4D data the first frame is shown.
        record: the result's sidecar.
        spread: voxel-wise standard deviation of the samples.
        title: of the page, in place of the result's name.
        force: replace a page of ours.

    Raises:
        GeometryError: the axes of the two are not parallel.
        OutputError: the page cannot be written, or is there and `force` is not given.
    """
    own = record[story.KEY]
    pictures = pair(source, result, spread)
    axes = spectra(pictures, story.bands_of(own))
    numbers = story.numbers(pictures, axes, record)
    kinds = ["before", "after", "difference"] + ["spread"] * (spread is not None)
    render.put_viewer(place.folder)
    with put(place, force=force) as (figures, page):
        sizes, loads = _figures(figures, pictures, kinds)
        entry = {
            "Format": FORMAT,
            "State": "done",
            "Numbers": asdict(numbers),
            "Grids": {"Input": _grid(source), "Output": _grid(result)},
            "Thumbnail": "axial_after.png",
            "Sidecar": record,
        }
        (figures / RECORD).write_text(_as_text(entry), encoding="utf-8", errors="replace")
        context = {
            "place": place,
            "title": title or place.stem,
            "numbers": numbers,
            "grids": entry["Grids"],
            "own": own,
            "axes": [_axis(axis, band, line) for axis, band, line in zip(range(3), own["Bands"], axes)],
            "frames": result.data.shape[3] if result.data.ndim == 4 else 1,
            "planes": [_plane(place, plane, sizes[plane], kinds) for plane in PLANES],
            "kinds": kinds,
            "difference": 100 * WINDOW_SHARE,
            "spread_top": pictures.spread_top if spread is not None else None,
            "volumes": {name: f"{FIGURES}/{quote(place.stem)}/{name}.js" for name in ("before", "after")},
            "megabytes": loads / 1e6,
            "viewer": place.root + render.viewer_link(),
            "warnings": [story.scrubbed(text) for text in own.get("Warnings", ())],
            "provenance": story.provenance(record),
        }
        page.write_text(render.page("page.html.j2", context), encoding="utf-8", errors="replace")


def failed(place: Place, name: str, error: str) -> None:
    """Note that a scan has failed; the next page of it takes the note away."""
    make_folder(place.failure.parent)
    entry = {"Format": FORMAT, "State": "failed", "Scan": name, "Error": story.scrubbed(error)}
    with replacing(place.failure, force=True) as beside:
        beside.write_text(_as_text(entry), encoding="utf-8", errors="replace")


def is_current(place: Place, identity: dict[str, Any]) -> bool:
    """Whether the page is there and is of what `identity` (source, weights, options, as a sidecar has them) gives."""
    path = place.figures / RECORD
    if not (place.page.is_file() and path.is_file()):
        return False
    try:
        own = read_record(path)["Sidecar"][story.KEY]
    except (InputError, KeyError, TypeError):  # damaged: to be made anew
        return False
    return all(own.get(key) == value for key, value in identity.items())


def _figures(folder: Path, pictures: Pair, kinds: list[str]) -> tuple[dict[str, tuple[int, int]], int]:
    """Write pictures and volumes; (size of each plane's pictures, bytes of the volumes)."""
    sizes, loads = {}, 0
    for plane in PLANES:
        for kind in kinds:
            picture = pictures.picture(plane, kind)
            picture.save(folder / f"{plane}_{kind}.png", optimize=True)
            sizes[plane] = picture.size
    for name, text in scripts(pictures).items():
        (folder / f"{name}.js").write_text(text, encoding="ascii")
        loads += len(text)
    return sizes, loads


def _plane(place: Place, plane: str, size: tuple[int, int], kinds: list[str]) -> dict[str, Any]:
    base = f"{FIGURES}/{quote(place.stem)}/{plane}"
    return {
        "name": plane,
        "width": size[0],
        "height": size[1],
        "letters": LETTERS[plane],
        "pictures": {kind: f"{base}_{kind}.png" for kind in kinds},
    }


def _axis(index: int, band: dict[str, Any], line) -> dict[str, Any]:
    """One axis for the template: its bands, and its curves as SVG paths."""
    measured, highest = band["MeasuredToCyclesPerMM"], band["SynthesisedToCyclesPerMM"]
    return {
        "name": line.name if line is not None else f"stored axis {index + 1}",
        "profile": story.PROFILES.get(band["Profile"], band["Profile"]),
        "acquired": band["AcquiredMM"],
        "measured": measured,
        "highest": highest,
        "share": min(1.0, measured / highest),
        "synthesised": highest > measured * 1.001,
        "plot": None if line is None else render.plot(line),
    }


def _grid(volume: Volume) -> str:
    counts = " × ".join(map(str, volume.data.shape[:3]))
    sizes = [f"{v:.3g}" for v in volume.voxel_size]
    return f"{counts} voxels of {sizes[0] if len(set(sizes)) == 1 else ' × '.join(sizes)} mm"


def _as_text(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
