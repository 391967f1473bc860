"""What the shipped weights gain on each kind of scan, and what it looks like: docs/your_data.md.

    python experiments/your_data.py --data SCANS [--hold-out NAME ...] [--crop 96] [--record]

Fine scans are made coarse as the protocol does and brought back; the middle `--crop` voxels of each head. Real thick
slices and a real 1 mm scan, of which nothing finer is known, are shown beside cubic only. Writes your_data.json, and
with --record the pictures of docs/pictures. `--hold-out` names people whom the weights were not trained on.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import numpy as np
import record

import mrisr
from mrisr.evaluate.cases import CASES, Case, Trial, make_trial
from mrisr.evaluate.metrics import data_range, psnr, ssim3d
from mrisr.evaluate.protocol import load_subjects
from mrisr.grid import Grid
from mrisr.preview import Panel, brain, contact_sheet, fewer_greys, interpolate, percentile_window, save
from mrisr.volume import Volume
from mrisr.weights import registry

PICTURES = checkout.ROOT / "docs" / "pictures"
ZOOM = 56.0
_CUT = ("kspace", "kspace", "kspace")
ALL = {**CASES, "fine": Case("fine", (1.25, 1.25, 1.25), _CUT)}


@dataclass(frozen=True)
class Kind:
    """name: of the rows and pictures; scan: file of --data; title: for the table; cases: of ALL; plane: of the picture
    of the first case; source: who is to be named for it."""

    name: str
    scan: str
    title: str
    cases: tuple[str, ...]
    plane: str
    source: str


KINDS = (
    Kind("t1w", "t1w_0p9mm_b", "T1w head, 3T, face removed", ("iso2", "thick4", "iso1p5"), "axial",
         "FNNDSC/SAG-anon, MIT"),
    Kind("t1w_vendor", "t1w_1mm_uih_a", "T1w head, 3T, another vendor", ("thick4", "iso2", "iso1p5"), "coronal",
         "neurolabusc/dcm_qa_uih, BSD-2"),
    Kind("stripped", "t1w_0p8mm_d", "T1w, skull-stripped", ("fine", "iso2", "thick4"), "axial",
         "rordenlab/niimath-bitmap, CC0"),
    Kind("t2w", "t2w_1mm_M2307", "T2w, skull-stripped, stroke", ("thick4", "iso2", "iso1p5"), "coronal",
         "rordenlab/niimath-bitmap, CC0"),
    Kind("flair", "flair_1mm_p26", "FLAIR, skull-stripped, MS", ("thick4", "iso2", "iso1p5"), "coronal",
         "muschellij2/open_ms_data, CC-BY"),
)  # fmt: skip
# No finer truth: pictures only. (file, plane, voxels of the cut per axis, source)
REAL = {
    "slices": ("clinical2d_p12_study1_t2w", "coronal", (144, 144, 44), "muschellij2/open_ms_data, CC-BY"),
    "one_mm": ("t1w_1mm_uih_a", "axial", (96, 96, 96), "neurolabusc/dcm_qa_uih, BSD-2"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the scans")
    parser.add_argument("--model", default="base")
    parser.add_argument("--hold-out", nargs="*", default=(), help="scans whose people were not trained on")
    parser.add_argument("--crop", type=int, default=96)
    record.add_place(parser)
    args = parser.parse_args()
    model = registry.load(args.model)
    pictures = PICTURES if args.results == record.RESULTS else args.results
    pictures.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in KINDS:
        subject = load_subjects(args.data / f"{kind.scan}.nii.gz", args.crop)[0]
        for name in kind.cases:
            trial = make_trial(subject, ALL[name])
            images = brought_back(trial, model)
            rows.append(row(kind, trial, images, kind.scan in args.hold_out))
            print(rows[-1], flush=True)
            if name == kind.cases[0]:
                draw(trial, images, kind, pictures / f"your_data_{kind.name}.png")
    for name, (scan, plane, cut, source) in REAL.items():
        draw_real(args.data / f"{scan}.nii.gz", model, plane, cut, source, pictures / f"your_data_{name}.png")
    content = {"model": {"name": model.name, "sha256": model.sha256}, "crop": args.crop, "rows": rows}
    record.write("your_data", {"command": "python experiments/your_data.py --data SCANS", **content}, args.results)
    return 0


def brought_back(trial: Trial, model) -> dict[str, np.ndarray]:
    """cubic and mrisr, on the trial's fine grid."""
    scan = Volume(trial.scan, trial.coarse.affine)
    result = mrisr.upscale(scan, voxel_size=trial.fine.voxel_size, model=model)
    return {
        "cubic": interpolate(trial.scan, trial.coarse.affine, trial.fine.shape, trial.fine.affine),
        "mrisr": result.data,
    }


def row(kind: Kind, trial: Trial, images: dict[str, np.ndarray], held_out: bool) -> dict:
    span = data_range(trial.reference)
    scores = {
        name: {
            "psnr": round(float(psnr(trial.reference, image, trial.mask, span)), 3),
            "ssim": round(float(ssim3d(trial.reference, image, trial.mask, span)), 4),
        }
        for name, image in images.items()
    }
    sizes = [f"{v:.2g}" for v in trial.coarse.voxel_size]
    scan = f"{sizes[0]} mm" if len(set(sizes)) == 1 else " x ".join(sizes) + " mm"
    return {"kind": kind.name, "title": kind.title, "case": trial.case.name, "scan": scan,
            "target_mm": [round(float(v), 3) for v in trial.fine.voxel_size], "held_out": held_out,
            "source": kind.source, **scores}  # fmt: skip


def draw(trial: Trial, images: dict[str, np.ndarray], kind: Kind, path: Path) -> None:
    affine = trial.fine.affine
    window = percentile_window(brain(trial.reference, affine, ZOOM))
    shown = {f"{name} from {scan_text(trial.coarse)}": image for name, image in images.items()}
    shown["the scan itself"] = trial.reference
    panels = [Panel(title, image, affine, window) for title, image in shown.items()]
    footer = f"{kind.title} ({kind.source})"
    keep(contact_sheet(panels, zoom=ZOOM, planes=(kind.plane,), footer=footer), path)


def draw_real(source: Path, model, plane: str, cut, credit: str, path: Path) -> None:
    """A scan as it came from the scanner, the middle of it, by cubic and by mrisr."""
    from mrisr.io import nifti

    volume = nifti.read(source)
    part = tuple(slice((n - min(n, m)) // 2, (n + min(n, m)) // 2) for n, m in zip(volume.data.shape, cut, strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in part]
    scan = Volume(np.ascontiguousarray(volume.data[part], dtype=np.float32), affine)
    result = mrisr.upscale(scan, model=model)
    cubic = interpolate(scan.data, scan.affine, result.data.shape, result.affine)
    window = percentile_window(brain(cubic, result.affine, ZOOM))
    panels = [
        Panel(f"cubic from {scan_text(scan.grid)}", cubic, result.affine, window),
        Panel(f"mrisr, {scan_text(result.grid)}", result.data, result.affine, window),
    ]
    keep(contact_sheet(panels, zoom=ZOOM, planes=(plane,), footer=f"as scanned ({credit})"), path)


def scan_text(grid: Grid) -> str:
    return " x ".join(f"{v:.2g}" for v in grid.voxel_size) + " mm"


def keep(sheet, path: Path) -> None:
    """Written in as many greys as fit a page."""
    for levels in (64, 32, 16):
        save(fewer_greys(sheet, levels), path)
        if path.stat().st_size <= 150_000:
            return
    raise SystemExit(f"{path}: {path.stat().st_size} bytes in 16 greys; show less of the brain")


if __name__ == "__main__":
    sys.exit(main())
