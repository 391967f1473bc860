"""One student, all resolutions: gain over cubic by input resolution, direction, obliquity and target voxel.

python benchmarks/resolution_sweep.py --data SCANS --model base

Writes resolution_sweep.json, .md and .png into benchmarks/results. The held-out people, the middle 96^3 voxels of each
head (`--crop`; 80^3 where the target voxel varies), scans by the forward model. Rows outside the trained range are run,
too, and must warn. Oblique rows: the head is sampled on a turned grid (quintic), which is then the fine grid; the
target rows start from 2 mm, and where the target is finer than the head was scanned, the truth holds nothing finer. In
the zero-filled rows the scan is stored on a finer grid than was measured, as scanners do, and its spectrum has to say.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import record
import torch

import mrisr
from mrisr import grid as grids
from mrisr.errors import MrisrWarning
from mrisr.evaluate import metrics
from mrisr.evaluate.baselines import cubic
from mrisr.evaluate.cases import Case, Subject, Trial, make_trial
from mrisr.evaluate.protocol import find_volumes, load_subjects
from mrisr.grid import Grid
from mrisr.infer.info import Info
from mrisr.ops.resample import apply_axes, resample3d
from mrisr.physics.degrade import SLICE_KINDS, start_matrices, zero_fill
from mrisr.physics.psf import AxisPSF
from mrisr.volume import Volume

HELD_OUT = ("t1w_0p9mm_b", "flair_1mm_p26", "t1w_1mm_uih_a")
CUT = ("kspace",) * 3
CLOSE = 0.1  # of the true resolution: is found
TARGET_CROP, TARGET_INPUT = 80, 2.0  # voxels; mm


@dataclass(frozen=True)
class Spec:
    """One row. x: where it is in its panel of the plot; target: mm, or None for the head's own voxel; turn: degrees;
    stored: voxels that are stored per voxel that was measured, per axis."""

    group: str
    label: str
    x: float
    factor: tuple[float, float, float]
    profile: tuple[str, str, str] = CUT
    target: float | None = None
    turn: float = 0.0
    stored: tuple[float, float, float] = (1.0, 1.0, 1.0)


def slices(axis: int, kind: str = "gaussian") -> tuple[str, str, str]:
    """A slice profile along one axis, cuts of k-space along the others."""
    return tuple(kind if a == axis else "kspace" for a in range(3))


def along(axis: int, factor: float, other: float = 1.0) -> tuple[float, float, float]:
    """`factor` along one axis, `other` along the others."""
    return tuple(factor if a == axis else other for a in range(3))


def specs() -> list[Spec]:
    """Every row of the table."""
    rows = [Spec("isotropic", f"{f:g}x", f, (f, f, f)) for f in (1.2, 1.5, 1.7, 2, 2.5, 3, 3.5, 4, 5)]
    rows += [Spec("slices", f"1 x 1 x {f:g}", f, along(2, f), slices(2)) for f in (1.5, 2, 3, 4, 5, 6, 7, 8, 10)]
    others = [
        ("1.37x (non-integer)", (1.37,) * 3, CUT, 0),
        ("1.25 x 1.6 x 2.9 slices (non-integer)", (1.25, 1.6, 2.9), slices(2), 0),
        ("1.3 x 1.3 x 5, super-Gaussian slices", (1.3, 1.3, 5), slices(2, "supergaussian"), 0),
        *((f"{' x '.join(f'{v:g}' for v in along(a, 1.6))}", along(a, 1.6), CUT, 0) for a in range(3)),
        *((f"{' x '.join(f'{v:g}' for v in along(a, 4))} slices", along(a, 4), slices(a), 0) for a in range(3)),
        ("2x, turned by 10 degrees", (2,) * 3, CUT, 10),
        ("2x, turned by 30 degrees", (2,) * 3, CUT, 30),
        ("1 x 1 x 4 slices, turned by 20 degrees", along(2, 4), slices(2), 20),
    ]
    rows += [Spec("directions", label, k, f, p, turn=t) for k, (label, f, p, t) in enumerate(others)]
    filled = [
        ("2x, zero-filled to 1x", (2,) * 3, CUT, (2,) * 3),
        ("2x, zero-filled to 1.25x in plane", (2,) * 3, CUT, (1.6, 1.6, 1)),
        ("1.5x, zero-filled to 0.75x along one axis", (1.5,) * 3, CUT, (2, 1, 1)),
        ("1.5 x 1.5 x 4 slices, zero-filled to 0.75 in plane", (1.5, 1.5, 4), slices(2), (2, 2, 1)),
    ]
    rows += [Spec("zero-filled", label, k, f, p, stored=s) for k, (label, f, p, s) in enumerate(filled)]
    rows += [
        Spec("target voxel", f"2 mm to {t:g} mm", t, (TARGET_INPUT / t,) * 3, CUT, target=t)
        for t in (0.5, 0.6, 0.7, 0.8, 1.0, 1.2)
    ]
    return rows


def turn(whole: Subject, crop: Subject, degrees: float) -> Subject:
    """The head on the crop's grid turned about its middle, first in plane, then out of it."""
    a = np.deg2rad(degrees)
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rotation = rotation @ np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = np.array(crop.grid.affine)
    centre = affine[:3, :3] @ ((np.array(crop.grid.shape) - 1) / 2) + affine[:3, 3]
    turn = np.eye(4)
    turn[:3, :3], turn[:3, 3] = rotation, centre - rotation @ centre
    grid = Grid(crop.grid.shape, turn @ affine)
    matrix = np.linalg.inv(whole.grid.affine) @ grid.affine
    data = resample3d(torch.as_tensor(whole.data), grid.shape, matrix).clamp_(min=0).numpy()
    mask = resample3d(torch.as_tensor(whole.mask, dtype=torch.float32), grid.shape, matrix, order=1).numpy() > 0.5
    return Subject(crop.name, data, grid, mask)


def with_voxel(subject: Subject, size: float) -> Subject:
    """The head on a grid of another voxel size: k-space cut or filled up with zeros."""
    target = grids.plan(subject.grid, voxel_size=size)
    psf = tuple(AxisPSF("kspace", float(v)) for v in subject.grid.voxel_size)
    place = (subject.grid.shape, subject.grid.voxel_size, target.shape, target.voxel_size, psf)
    data = apply_axes(torch.as_tensor(subject.data), start_matrices(*place)).clamp_(min=0).numpy()
    mask = resample3d(
        torch.as_tensor(subject.mask, dtype=torch.float32),
        target.shape,
        np.linalg.inv(subject.grid.affine) @ target.affine,
        order=1,
    )
    return Subject(subject.name, data, target, mask.numpy() > 0.5)


def zero_filled(trial: Trial, stored: tuple[float, float, float]) -> Trial:
    """The same scan on a grid of more voxels, which hold nothing more."""
    finer = grids.plan(trial.coarse, factor=stored)
    return replace(trial, scan=zero_fill(torch.as_tensor(trial.scan), stored).abs().numpy(), coarse=finer)


@lru_cache
def read_subject(path: Path, crop: int | None) -> Subject:
    """The head of a file, or its middle."""
    return load_subjects(path, crop)[0]


def subject_for(spec: Spec, path: Path, crop: int) -> Subject:
    """The fine volume of a row."""
    subject = read_subject(path, min(crop, TARGET_CROP) if spec.target else crop)
    if spec.turn:
        return turn(read_subject(path, None), subject, spec.turn)
    return with_voxel(subject, spec.target) if spec.target else subject


def inside(spec: Spec, trained: dict) -> bool:
    """Whether a row lies in the trained range of each axis."""
    kinds = ["slice" if kind in SLICE_KINDS else "isotropic" for kind in spec.profile]
    return all(f <= trained.get(kind, (0, np.inf))[1] * (1 + 1e-3) for f, kind in zip(spec.factor, kinds))


def measure(spec: Spec, subject: Subject, model) -> dict:
    """One row on one person."""
    trial = make_trial(subject, Case(spec.label, spec.factor, spec.profile))
    if max(spec.stored) > 1:
        trial = zero_filled(trial, spec.stored)
    yardstick = cubic(trial.scan, trial.coarse, trial.fine)
    auto, info = upscaled(trial, model, "auto")
    # Told what was assumed anyway, and with nothing left to correct, it would do the same again.
    widths = [(axis.profile, round(axis.acquired_mm, 6)) for axis in info.resolution]
    same = widths == [(axis.kind, round(axis.width, 6)) for axis in trial.psf]
    same &= (info.consistency[0].chi2_before or np.inf) <= 1
    with_psf = auto if same else upscaled(trial, model, trial.psf)[0]
    span = metrics.data_range(trial.reference)
    psnr, ssim, beyond = (
        [score(image) for image in (yardstick, auto, with_psf)]
        for score in (
            lambda image: metrics.psnr(trial.reference, image, trial.mask, span),
            lambda image: metrics.ssim3d(trial.reference, image, trial.mask, span),
            lambda image: metrics.fsc(trial.reference, image, trial.mask, trial.fine.voxel_size, band=trial.band).area,
        )
    )
    return {
        "person": subject.name,
        "scan_mm": [round(float(v), 3) for v in trial.coarse.voxel_size],
        "target_mm": [round(float(v), 3) for v in trial.fine.voxel_size],
        "psnr_cubic": round(psnr[0], 3),
        "gain": round(psnr[1] - psnr[0], 3),
        "gain_stated": round(psnr[2] - psnr[0], 3),
        "ssim_gain": round(ssim[1] - ssim[0], 4),
        # Nothing lies beyond the band where a factor is close to 1: then there is nothing to correlate.
        "fsc_gain": None if np.isnan(beyond[0]) else round(beyond[1] - beyond[0], 4),
        "acquired_mm": [round(float(p.width), 3) for p in trial.psf],
        "found_mm": [round(float(axis.acquired_mm), 3) for axis in info.resolution],
        "warned": any("was trained on" in text for text in info.warnings),
    }


def upscaled(trial: Trial, model, psf) -> tuple[np.ndarray, Info]:
    """(result, info) on the trial's own fine grid."""
    scan = Volume(trial.scan, np.array(trial.coarse.affine), name=trial.subject)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MrisrWarning)
        result, info = mrisr.upscale(scan, voxel_size=trial.fine.voxel_size, model=model, psf=psf, return_info=True)
    if not np.allclose(result.affine, trial.fine.affine, atol=1e-3) or result.data.shape != trial.fine.shape:
        raise RuntimeError(f"{trial.subject}, {trial.case.name}: answered on another grid than asked for")
    return np.asarray(result.data, np.float32), info


def mean(row: dict, key: str) -> float | None:
    """Of the people of a row."""
    values = [p[key] for p in row["people"] if p[key] is not None]
    return float(np.mean(values)) if values else None


def render(result: dict) -> str:
    """resolution_sweep.md from the JSON form alone."""
    trained = result["trained_range"]
    within = [row for row in result["rows"] if row["inside"]]
    outside = [row for row in result["rows"] if not row["inside"]]
    wins = sum(all(p["gain"] > 0 for p in row["people"]) for row in within)
    worst = min((p["gain"], row["label"], p["person"]) for row in within for p in row["people"])
    lines = [
        "# Resolution sweep",
        "",
        f"`{result['command']}`; {result['model']}, commit {result['commit']}, {result['date']}. "
        f"Trained range: {trained}. Heads cut to the middle {result['crop']}^3 voxels.",
        "",
        f"{wins} of {len(within)} rows inside the trained range beat cubic on every person (worst: {worst[0]:+.2f} dB, "
        f"{worst[1]}, {worst[2]}); of the {len(outside)} outside, {sum(map(warned, outside))} warned.",
        *(["", recognised(result)] if recognised(result) else []),
        "",
        table(result),
        "",
        "Gain: PSNR over cubic in the head mask, dB, as a user gets it (`psf` assumed); stated: told the point spread "
        "(consistency on), mean of the people. SSIM, FSC: gain over cubic of the former; FSC beyond the acquired band.",
        "",
        "![gain over cubic](resolution_sweep.png)",
    ]
    return "\n".join(lines) + "\n"


def recognised(result: dict) -> str:
    """What `psf="auto"` found where the scanner had zero-filled."""
    people = [person for row in result["rows"] if row["group"] == "zero-filled" for person in row["people"]]
    shares = [found / true - 1 for p in people for found, true in zip(p["found_mm"], p["acquired_mm"])]
    if not shares:
        return ""
    right = sum(all(abs(f / t - 1) <= CLOSE for f, t in zip(p["found_mm"], p["acquired_mm"])) for p in people)
    return (
        f'Of {len(people)} zero-filled scans `psf="auto"` finds what was measured, to {CLOSE:.0%} along every axis, in '
        f"{right} (widths of {min(shares):+.1%} to {max(shares):+.1%})."
    )


def warned(row: dict) -> bool:
    """Whether every person's run warned."""
    return all(p["warned"] for p in row["people"])


def table(result: dict) -> str:
    """One line per row."""
    people = result["people"]
    head = [
        "what",
        "scan",
        "cubic, dB",
        *(f"gain {p}" for p in people),
        "gain stated",
        "SSIM",
        "FSC",
        "trained",
        "warned",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in result["rows"]:
        fsc = mean(row, "fsc_gain")
        cells = [row["group"], row["label"], f"{mean(row, 'psnr_cubic'):.2f}"]
        cells += [f"{p['gain']:+.2f}" for p in row["people"]]
        cells += [f"{mean(row, 'gain_stated'):+.2f}", f"{mean(row, 'ssim_gain'):+.4f}"]
        cells += ["-" if fsc is None else f"{fsc:+.3f}", "yes" if row["inside"] else "no", "yes" if warned(row) else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(result: dict, path: Path) -> None:
    """Four panels: isotropic, slices, target voxel, and the other directions as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    panels = (
        ("isotropic", "isotropic: scan voxel / target voxel", "isotropic"),
        ("slices", "slices: thickness / target voxel", "slice"),
        ("target voxel", "target voxel, mm (from 2 mm)", None),
    )
    for ax, (group, title, kind) in zip(axes.flat, panels):
        rows = [row for row in result["rows"] if row["group"] == group]
        x = [row["x"] for row in rows]
        for k, person in enumerate(result["people"]):
            ax.plot(x, [row["people"][k]["gain"] for row in rows], "o-", color=f"C{k}", label=person)
            gains = [row["people"][k]["gain_stated"] for row in rows]
            ax.plot(x, gains, "x:", color=f"C{k}", label=f"{person}, psf stated")
        if kind:
            edge = result["trained_range"].get(kind, (1, max(x, default=1)))[1]
            ax.axvspan(1, edge, color="0.92", label="trained range")
        ax.axhline(0, color="black", lw=0.8)
        ax.set(title=title, ylabel="PSNR gain over cubic, dB")
    axes.flat[0].legend(fontsize=8)
    rows = [row for row in result["rows"] if row["group"] in ("directions", "zero-filled")]
    ax, y, wide = axes.flat[3], np.arange(len(rows)), 0.8 / len(result["people"])
    for k, person in enumerate(result["people"]):
        ax.barh(y + wide * (k - 1), [row["people"][k]["gain"] for row in rows], wide, color=f"C{k}", label=person)
    ax.set_yticks(y, [textwrap.fill(row["label"], 32) for row in rows], fontsize=6)
    ax.invert_yaxis()
    ax.axvline(0, color="black", lw=0.8)
    ax.set(title="directions, non-integer, oblique, zero-filled", xlabel="PSNR gain over cubic, dB")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the scans")
    parser.add_argument("--model", default="base")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, metavar="NAME")
    parser.add_argument("--crop", type=int, default=96, metavar="N", help="middle N^3 voxels (default: 96)")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="these groups of rows")
    record.add_place(parser, "--out")
    args = parser.parse_args()
    paths = find_volumes([args.data / f"{name}.nii.gz" for name in args.held_out])
    model = mrisr.load_model(args.model)
    trained = model.meta.get("trained_range", {})
    rows = []
    for spec in specs():
        if args.only and spec.group not in args.only:
            continue
        people = [measure(spec, subject_for(spec, path, args.crop), model) for path in paths]
        rows.append(
            {"group": spec.group, "label": spec.label, "x": spec.x, "inside": inside(spec, trained), "people": people}
        )
        gains = ", ".join(f"{p['gain']:+.2f} ({p['gain_stated']:+.2f})" for p in people)
        print(f"{spec.group}, {spec.label}: {gains} dB", file=sys.stderr, flush=True)
    name = Path(args.model).name  # a folder of this machine is nobody else's
    result = {
        "command": f"python benchmarks/resolution_sweep.py --data SCANS --model {name} --crop {args.crop}",
        "model": f"{name} (sha256 {model.sha256[:12]})",
        "trained_range": trained,
        "crop": args.crop,
        "people": [row["person"] for row in rows[0]["people"]],
        "rows": rows,
    }
    path = record.write("resolution_sweep", result, args.results)
    result = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(render(result), encoding="utf-8")
    plot(result, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
