"""Stacks of slices of one head, joined: what that gives over the best single stack, the mean of all, and the network.

    python experiments/join.py --data SCANS [--people P ...] [--cases C ...] [--crop 64 96] [--picture DIR] [--record]

Every held-out person is scanned in slices of four voxels along each axis in turn: from the whole head, of which a box
in the middle is then looked at, so that no border is kinder than a scan's. Cases: `clean`; `noisy` (Rician, 2 % of the
median head); `moved` (the same noise, and the head turned by 2 degrees about and shifted by 2 mm along every axis
between stacks, of which nothing is told); `two` (the first two stacks of `noisy`). PSNR in the head, six voxels from
the box's faces. Yardsticks are of stacks that have not moved: `cubic` and `base` on the best single one. `plain` is the
joint solution without a network, with the smoothness that is best on training scans; `plain_best` with the best for
this very one. `whole`: one, two and three stacks of the whole head of one person by the
command line, each in a process of its own: seconds and memory. `stranger`: of what is not one head. Writes join.json;
with --record into benchmarks/results, row by row.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import numpy as np
import record
import torch

import mrisr
from mrisr import grid as grids
from mrisr.errors import InputError
from mrisr.evaluate import metrics
from mrisr.evaluate.baselines import BASELINES
from mrisr.evaluate.cases import Subject, subject_of
from mrisr.grid import Grid
from mrisr.infer.join.align import align
from mrisr.infer.join.run import ITERATIONS, NEIGHBOURS, interpolated, measured_on
from mrisr.infer.join.together import Together
from mrisr.io import nifti
from mrisr.physics.degrade import rician
from mrisr.physics.psf import AxisPSF, parse_psf
from mrisr.physics.stack import StackModel, solve
from mrisr.volume import Volume

PEOPLE = ("t1w_0p9mm_b", "flair_1mm_p26", "t1w_1mm_uih_a")
CASES = {"clean": (0.0, False, 3), "noisy": (0.02, False, 3), "moved": (0.02, True, 3), "two": (0.02, False, 2)}
CROPS = (64, 96)  # fine voxels; of the box in the middle of the head
SMOOTHNESS = (0.15, 0.22, NEIGHBOURS, 0.45)  # of the joint solution without a network
THICK, BORDER = 4, 6  # fine voxels
MOVES = (((0, 0, 0), (0, 0, 0)), ((2, -2, 2), (2, -2, 2)), ((-2, 2, 2), (-2, 2, 2)))  # degrees, mm
WHOLE = "t1w_1mm_uih_a"  # whose whole head is joined, too
NAMES = ("axial", "sagittal", "coronal")


def rigid(degrees, shift, centre) -> np.ndarray:
    """[4, 4] mm to mm: turned about the axes in turn, at `centre`, then shifted."""
    turned = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), np.deg2rad(degrees)):
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turned = one @ turned
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turned, np.asarray(shift) + centre - turned @ centre
    return matrix


def scanned(head: Volume, subject: Subject, axis: int, noise: float, moved: np.ndarray, seed: int) -> Volume:
    """The stack of slices along a stored axis, with the field of view of the subject's box."""
    factor = np.where(np.arange(3) == axis, THICK, 1)
    grid = grids.plan(subject.grid, voxel_size=tuple(np.array(subject.grid.voxel_size) * factor))
    margin = [4 if a == axis else 16 for a in range(3)]  # samples more on every side, so that profiles see the head
    shift = np.eye(4)
    shift[:3, 3] = -np.array(margin)
    wide = Grid(tuple(n + 2 * m for n, m in zip(grid.shape, margin)), grid.affine @ shift)
    psf = tuple(AxisPSF("gaussian" if a == axis else "kspace", v) for a, v in enumerate(grid.voxel_size))
    values = StackModel.of(head.grid, wide, psf, moved).forward(torch.from_numpy(head.data))
    values = values[tuple(slice(m, -m) for m in margin)].contiguous()
    if noise:
        sigma = noise * float(np.median(subject.data[subject.mask]))
        values = rician(values, sigma, torch.Generator().manual_seed(seed))
    return Volume(values.numpy(), grid.affine, name=NAMES[(axis + 1) % 3])


def plain(volumes: list[Volume], target: Grid) -> dict[float, np.ndarray]:
    """The joint solution of the stacks without a network, by the standard deviation of neighbours' differences."""
    psfs = [parse_psf("auto", v.voxel_size)[0] for v in volumes]
    stacks, scale, _ = align(volumes, psfs, Together(), threads=1)
    measured, begin = [measured_on(s, target) for s in stacks], interpolated(stacks, target)
    found = {n: solve(measured, begin, smooth=n**-2, iterations=ITERATIONS) for n in SMOOTHNESS}
    return {n: x.numpy() * scale.scale + scale.offset for n, x in found.items()}


def one(person: str, head: Volume, subject: Subject, case: str) -> tuple[dict, dict[str, np.ndarray]]:
    """A row of the table, and the images."""
    noise, moving, count = CASES[case]
    target, inner = subject.grid, np.zeros(subject.mask.shape, bool)
    inner[(slice(BORDER, -BORDER),) * 3] = True
    span, mask = metrics.data_range(subject.data), subject.mask & inner
    moves = [rigid(*m, target.center) if moving else np.eye(4) for m in MOVES]
    axes = (2, 0, 1)[:count]
    still = [scanned(head, subject, a, noise, np.eye(4), k) for k, a in enumerate(axes)]
    stacks = [scanned(head, subject, a, noise, m, k) for k, (a, m) in enumerate(zip(axes, moves))] if moving else still
    cubic = [BASELINES["cubic"](v.data, v.grid, target) for v in still]
    scores = [metrics.psnr(subject.data, image, mask, span) for image in cubic]
    best = int(np.argmax(scores))
    how = dict(voxel_size=target.voxel_size, threads=1, engine="openvino")
    images = {"cubic": cubic[best], "mean": np.mean(cubic, axis=0)}
    if moving:
        images["mean"] = np.mean([BASELINES["cubic"](v.data, v.grid, target) for v in stacks], axis=0)
    images["base"] = mrisr.upscale(still[best], **how).data
    smoothed = plain(stacks, target)
    images["plain"] = smoothed[NEIGHBOURS]
    start = time.process_time()
    joined, info = mrisr.upscale(stacks, return_info=True, **how)
    seconds = time.process_time() - start
    images["joined"] = joined.data
    row = {"person": person, "case": case, "crop": subject.data.shape[0], "best": still[best].name}
    row |= {name: round(metrics.psnr(subject.data, image, mask, span), 3) for name, image in images.items()}
    best_of_plain = max(metrics.psnr(subject.data, image, mask, span) for image in smoothed.values())
    row["plain_best"] = round(best_of_plain, 3)
    row["cpu_seconds"], row["register_seconds"] = round(seconds, 1), round(info.seconds["register"], 1)
    row["memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    points = np.c_[np.argwhere(subject.mask)[::499], np.ones(len(np.argwhere(subject.mask)[::499]))] @ target.affine.T
    row["stacks"] = [
        {
            "off_mm": round(_distance(points, np.array(s.transform), m), 3),
            "moved_mm": round(_distance(points, np.eye(4), m), 3),
            **{k: round(getattr(s, k), 4) for k in ("correlation", "overlap", "noise_sigma", "weight")},
            **{k: round(getattr(s, k), 3) for k in ("chi2_before", "chi2_after")},
        }
        for s, m in zip(info.stacks, moves)
    ]
    return row, {"reference": subject.data, **images}


def whole(person: str, head: Volume) -> list[dict]:
    """What one, two and three stacks of the whole head cost, and give."""
    subject = subject_of(person, head.data, head.grid)
    stacks = [scanned(head, subject, axis, 0.02, np.eye(4), k) for k, axis in enumerate((2, 0, 1))]
    span, rows = metrics.data_range(subject.data), []
    voxel_size = [f"{v:.9g}" for v in subject.grid.voxel_size]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{s.name}.nii" for s in stacks]
        for stack, path in zip(stacks, paths):
            nifti.write(stack, path)
        for count in (1, 2, 3):
            out = Path(folder) / f"{count}.nii"
            words = ["upscale", *(["--join"] if count > 1 else []), "-i", *map(str, paths[:count]), "-o", str(out)]
            words += ["--voxel-size", *voxel_size, "--threads", "1", "--quiet"]
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-m", "mrisr.cli.main", *words])
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"mrisr {' '.join(words)}: exit code {process.returncode}")
            rows.append(
                {
                    "person": person,
                    "case": f"whole head, {count}",
                    "crop": 0,
                    "count": count,
                    "voxels": list(subject.data.shape),
                    "joined": round(metrics.psnr(subject.data, nifti.read(out).data, subject.mask, span), 3),
                    "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
                    "wall_seconds": round(time.perf_counter() - start, 1),
                    "memory_gb": round(used.ru_maxrss / 2**20, 2),
                }
            )
    return rows


def _distance(points: np.ndarray, found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm((points @ (found - true).T)[:, :3], axis=1).mean())


def stranger(person: str, head: Volume, subject: Subject, other: str, folder: Path) -> dict:
    """What the correlation is of a stack of somebody else, or of another contrast, laid over this head's centre."""
    first = scanned(head, subject, 2, 0.0, np.eye(4), 0)
    theirs = nifti.read(folder / f"{other}.nii.gz")
    box = subject_of(other, theirs.data, theirs.grid, subject.data.shape[0])
    second = scanned(theirs, box, 0, 0.0, np.eye(4), 0)
    affine = second.affine.copy()
    affine[:3, 3] += first.grid.center - second.grid.center
    psfs = [parse_psf("auto", v.voxel_size)[0] for v in (first, second)]
    pair = [first, Volume(second.data, affine, name=other)]
    found = align(pair, psfs, Together(force=True), threads=1)[0][1]
    try:
        align(pair, psfs, Together(), threads=1)
        refused = ""
    except InputError as error:
        refused = str(error)
    row = {"person": person, "case": f"with {other}", "crop": subject.data.shape[0]}
    return row | {"correlation": round(found.correlation, 4), "refused": refused}


def picture(images: dict[str, np.ndarray], path: Path) -> None:
    """A coronal and a sagittal plane of every image, side by side."""
    from PIL import Image

    top = float(np.percentile(images["reference"], 99.7))
    rows = []
    for take in (lambda v: v[:, v.shape[1] // 2].T[::-1], lambda v: v[v.shape[0] // 2].T[::-1]):
        tiles = [np.clip(take(v) / top, 0, 1) for v in images.values()]
        rows.append(np.concatenate([np.pad(t, 1, constant_values=1) for t in tiles], axis=1))
    sheet = (255 * np.concatenate(rows)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).resize((2 * sheet.shape[1], 2 * sheet.shape[0]), Image.Resampling.NEAREST).save(path)


def rows_of(case: str, person: str, head: Volume, subject: Subject, args: argparse.Namespace) -> list[dict]:
    """The rows of a case; writes its picture, where one is asked for."""
    if case == "whole":
        return whole(person, head)
    if case == "stranger":
        return [stranger(person, head, subject, other, args.data) for other in PEOPLE if other != person]
    row, images = one(person, head, subject, case)
    if args.picture:
        picture(images, args.picture / f"join_{person}_{case}.png")
    return [row]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="SCANS", help="folder that holds the people")
    parser.add_argument("--people", nargs="+", default=list(PEOPLE))
    kinds = (*CASES, "stranger", "whole")
    parser.add_argument("--cases", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--crop", type=int, nargs="+", default=list(CROPS))
    parser.add_argument(
        "--picture", type=Path, metavar="DIR", help="write join_PERSON_CASE.png there, of the last crop"
    )
    record.add_place(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    same = {"thickness_voxels": THICK, "model": mrisr.load_model("base").sha256}
    command = "python experiments/join.py --data SCANS --record"
    for person in args.people:
        head = nifti.read(args.data / f"{person}.nii.gz")
        for crop in args.crop:
            subject = subject_of(person, head.data, head.grid, crop)
            for case in args.cases:
                # Strangers need one crop, and a whole head is none.
                if case in ("stranger", "whole") and crop != args.crop[0] or case == "whole" and person != WHOLE:
                    continue
                rows = rows_of(case, person, head, subject, args)
                print(*rows, sep="\n", flush=True)
                held = record.merged("join", rows, ("person", "case", "crop"), args.results, same=same)
                record.write("join", {"command": command, **same, "rows": held}, args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
