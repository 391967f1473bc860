"""Real DICOM series of four vendors through the real model and back: what validator, converter and reader say of them.

    python benchmarks/dicom.py [--data FOLDER] [--only NAME ...] [--record]

For each: `mrisr.upscale` of the series, written as a derived series and as NIfTI; then dciodvfy on every file, dcm2niix
on source and result, our own reader, and every reference, UID and private element by pydicom. Writes dicom.json and
dicom.md; rows of series that are not run again stay, with their date. Grids are coarser than the default, so that six
series take minutes: geometry does not depend on it. Exits with 1 where a check fails.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout
import record

LIMIT_MM = 0.002


@dataclass(frozen=True)
class Case:
    """archive: as in the data's README. size: of the result, mm."""

    name: str
    archive: str
    size: tuple[float, float, float]
    group: int | None = None


CASES = (
    Case("GE 3D, oblique, classic", "ge_3d_oblique_phantom", (1.4, 1.4, 1.2)),
    Case("GE classic, no frame of reference", "ge_classic_no_frame_of_reference", (0.9, 0.9, 0.7)),
    Case("Siemens 2D with a gap, classic", "siemens_2d_t1w_gap_hfs", (1.2, 1.2, 2.4)),
    Case("Siemens XA30, enhanced", "siemens_xa30_enhanced_t1w", (1.4, 1.4, 1.4)),
    Case("Hitachi, classic", "hitachi_classic_one_frame", (1.2, 1.2, 2.0)),
    Case("Philips, enhanced, magnitude", "philips_enhanced_b0map", (2.0, 2.0, 2.0), 1),
)


def run(case: Case, data: Path, scratch: Path) -> dict:
    """One row: sizes, seconds, and what each check found."""
    import mrisr
    from mrisr.io import dicom

    with tarfile.open(data / f"{case.archive}.tar.xz") as tar:
        tar.extractall(scratch, filter="data")
    source = scratch / case.archive
    before = _hashes(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mrisr.errors.MrisrWarning)
        series = dicom.find(source, group=case.group)
        start = time.perf_counter()
        result, info = mrisr.upscale(series.volume(), voxel_size=case.size, return_info=True)
        seconds = time.perf_counter() - start
        output = dicom.write_series(result, series, info, scratch / "derived")
        again = dicom.find(output.folder)
    nib.save(nib.Nifti1Image(result.data, result.affine), scratch / "ours.nii")
    converted = _dcm2niix(output.folder, scratch / "converted")
    result_row = {
        "series": case.name,
        "archive": case.archive,
        "source": list(series.shape),
        "derived": list(result.data.shape),
        "voxel_size": list(case.size),
        "model": info.model,
        "seconds": round(seconds, 1),
        "files": len(output.files),
        "clipped": output.clipped,
        "slope": output.slope,
        "originals_unchanged": before == _hashes(source),
        **_validated(output.files),
        **_geometry(series, result, converted),
        **_voxels(nib.load(scratch / "ours.nii"), converted, output.slope, output.clipped),
        **_reread(result, again, output),
        **_references(series, output),
    }
    result_row["passed"] = all(passes(result_row).values())
    return result_row


def passes(row: dict) -> dict[str, bool]:
    """The checks of a row by name."""
    return {
        "dciodvfy exits with 0 on every file": row["dciodvfy_failed"] == 0,
        "centre of the field of view": row["centre_mm"] <= LIMIT_MM,
        "corners of the planned grid": row["corners_mm"] <= LIMIT_MM,
        "corners of the source's": row["source_corners_voxels"] <= 0.5 + LIMIT_MM,
        "voxels of dcm2niix": row["voxels_off"] <= 0.5 + 1e-3,
        "read again": row["reread_equal"],
        "references resolve": row["references_lost"] == 0,
        "UIDs are unique": row["uids"] == row["files"],
        "no private element": row["private"] == 0,
        "originals unchanged": row["originals_unchanged"],
    }


def _hashes(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        raise SystemExit(f"benchmarks/dicom.py: {name} is not installed (pip install -e '.[dev]')")
    return path


def _validated(files) -> dict:
    validator = _program("dciodvfy")
    call = lambda path: subprocess.run([validator, str(path)], capture_output=True).returncode  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        return {"dciodvfy_failed": sum(code != 0 for code in pool.map(call, files))}


def _dcm2niix(folder: Path, out: Path) -> nib.Nifti1Image:
    out.mkdir()
    words = [_program("dcm2niix"), "-f", "out", "-b", "n", "-z", "n", "-o", str(out), str(folder)]
    process = subprocess.run(words, capture_output=True, text=True)
    if not (out / "out.nii").is_file():
        raise SystemExit(f"dcm2niix: {process.stdout}")
    return nib.load(out / "out.nii")


def _ends(shape) -> np.ndarray:
    return np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(shape) - 1)


def _faces(affine: np.ndarray, shape) -> np.ndarray:
    """Corners of the field of view, mm: half a voxel beyond the outer centres."""
    return nib.affines.apply_affine(affine, _ends(shape) + np.sign(_ends(shape) - 0.5) * 0.5)


def _geometry(series, result, converted) -> dict:
    """Distances in mm (and in output voxels), as dcm2niix sees the derived series."""
    middle = lambda affine, shape: affine @ [*((np.array(shape) - 1) / 2), 1]  # noqa: E731
    centre = np.abs(middle(series.affine, series.shape) - middle(converted.affine, converted.shape)).max()
    steps = np.linalg.inv(result.affine) @ converted.affine
    places = nib.affines.apply_affine(converted.affine, _ends(converted.shape))
    index = np.rint(nib.affines.apply_affine(steps, _ends(converted.shape)))
    planned = nib.affines.apply_affine(result.affine, index)
    # Each corner of ours against the nearest of the source's, along the axes of the result, in its voxels.
    ours, theirs = _faces(result.affine, result.data.shape), _faces(series.affine, series.shape)
    apart = nib.affines.apply_affine(np.linalg.inv(result.affine), ours) - nib.affines.apply_affine(
        np.linalg.inv(result.affine), theirs
    )
    return {
        "centre_mm": float(centre),
        "corners_mm": float(np.abs(places - planned).max()),
        "source_corners_voxels": float(np.abs(apart).max()),
    }


def _voxels(ours, converted, slope: float, clipped: int) -> dict:
    """Largest difference between the two files at the same place (left and right included), in stored units."""
    steps = np.linalg.inv(ours.affine) @ converted.affine
    index = np.rint(nib.affines.apply_affine(steps, np.indices(converted.shape).reshape(3, -1).T)).astype(int)
    there = np.asarray(ours.dataobj)[tuple(index.T)].reshape(converted.shape)
    if clipped:  # counted, and said: what was below 0
        there = there.clip(0, None)
    return {"voxels_off": float(np.abs(converted.get_fdata() - there).max() / slope)}


def _reread(result, again, output) -> dict:
    expected = np.rint(result.data.astype(np.float64) / output.slope)
    expected = expected.clip(0, None) if output.clipped else expected
    values = np.abs(again.volume().data - expected * output.slope).max() <= 1e-6 * np.abs(result.data).max()
    same = again.shape == result.data.shape and np.allclose(again.affine, result.affine, atol=1e-6)
    return {"reread_equal": bool(values and same)}


def _references(series, output) -> dict:
    import pydicom

    sources = {(f.sop_instance, f.number if f.multi_frame else None) for f in series.frames}
    strays, private, uids = 0, 0, set()
    for path in output.files:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        uids.add(dataset.SOPInstanceUID)
        private += sum(e.tag.is_private for e in dataset.iterall())
        for item in dataset.SourceImageSequence:
            number = int(item.ReferencedFrameNumber) if "ReferencedFrameNumber" in item else None
            strays += (item.ReferencedSOPInstanceUID, number) not in sources
    return {"references_lost": strays, "private": private, "uids": len(uids)}


def text(content: dict) -> str:
    """The page: one line per series."""
    lines = [
        "# DICOM both ways, on real series",
        "",
        "`python benchmarks/dicom.py --record`: each series is upscaled by the real model and written as a derived "
        "series; grids are coarser than the default. Distances as dcm2niix sees the derived series; voxels against our "
        "own NIfTI of the same run, in stored units (0.5 is rounding). In every row: dciodvfy on every file, read "
        "again, references, UIDs, private elements, originals unchanged.",
        "",
        "| series | voxels in | voxels out | files | dciodvfy errors | centre, mm | corners, mm | to the source's "
        "corners, voxels | voxels off | read again | lost references | private | all checks |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in content["rows"]:
        sizes = [" x ".join(map(str, r[key])) for key in ("source", "derived")]
        lines.append(
            f"| {r['series']} | {sizes[0]} | {sizes[1]} | {r['files']} | {r['dciodvfy_failed']} | "
            f"{r['centre_mm']:.1e} | {r['corners_mm']:.1e} | {r['source_corners_voxels']:.2f} | "
            f"{r['voxels_off']:.3f} | {'equal' if r['reread_equal'] else 'DIFFERS'} | {r['references_lost']} | "
            f"{r['private']} | {'passed' if r['passed'] else 'FAILED'} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = checkout.ROOT.parent / "shared" / "data" / "dicom"
    parser.add_argument("--data", type=Path, default=shared, help="folder of the archives")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[c.archive for c in CASES])
    record.add_place(parser)
    options = parser.parse_args()
    rows = []
    for case in CASES:
        if options.only and case.archive not in options.only:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(run(case, options.data, Path(scratch)))
        failed = [name for name, good in passes(rows[-1]).items() if not good]
        print(
            f"{case.name}: {'FAILED: ' + ', '.join(failed) if failed else 'passed'} ({rows[-1]['seconds']} s)",
            flush=True,
        )
        merged = record.merged("dicom", rows, ("archive",), options.results)
        order = [c.archive for c in CASES]
        content = {"rows": sorted(merged, key=lambda r: order.index(r["archive"]))}
        path = record.write("dicom", content, options.results)
        path.with_suffix(".md").write_text(text(content), encoding="utf-8")
    return 0 if all(r["passed"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
