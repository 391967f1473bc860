"""Ten small scans: one command each, one batch, and the batch again, which writes nothing.

    python benchmarks/many_scans.py [--scans 10] [--cluster] [--record]

Heads of 48 x 56 x 44 voxels of 2 mm to 1.5 mm by the weights that ship: small, so that what a batch saves (starting
Python, loading PyTorch and the model, compiling the graph) is most of it. `--cluster` adds what workers are for:
heads of 128 x 152 x 120 voxels of 1.4 mm to 1 mm, by one process and by `--cluster local` of 1 and 2 workers of one
core, in float32 (twice as many) and in what the processor chooses. Other programs' load at the start and the end is
part of the result.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import checkout  # noqa: F401 - before mrisr
import nibabel as nib
import numpy as np
import record

# shape, voxel size of the scans and of the results, mm
SMALL = (48, 56, 44), 2.0, 1.5
WHOLE = (128, 152, 120), 1.4, 1.0
UPSCALE = (sys.executable, "-m", "mrisr.cli.main", "upscale")


def scan(path: Path, seed: int, shape: tuple[int, int, int], voxel: float) -> None:
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((axes**2).sum(axis=0))
    folds = 500 + 250 * np.sin(19 * axes[0]) * np.sin(17 * axes[1]) * np.sin(15 * axes[2])
    noise = np.random.default_rng(seed).normal(0, 5, (2, *shape))
    data = np.hypot(np.where(radius < 0.7, folds, 0) + noise[0], noise[1])
    nib.save(nib.Nifti1Image(data.astype(np.int16), np.diag([-voxel, voxel, voxel, 1])), path)


def scans(folder: Path, count: int, shape: tuple[int, int, int], voxel: float) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{index}.nii.gz" for index in range(count)]
    for seed, path in enumerate(paths):
        scan(path, seed, shape, voxel)
    return paths


def upscale(target: float, *words: object) -> float:
    """Seconds of one command."""
    return side_by_side(target, words)


def side_by_side(target: float, *jobs: Sequence[object]) -> float:
    """Seconds until the last of several commands, started at once, has ended."""
    start = time.perf_counter()
    commands = [[*UPSCALE, "--voxel-size", str(target), "--quiet", *map(str, job)] for job in jobs]
    running = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for c in commands]
    for command, process in zip(commands, running, strict=True):
        errors = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}\n{errors}")
    return time.perf_counter() - start


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def measure(count: int) -> list[dict]:
    """Small heads: what one process for all of them saves, and that its images are the same."""
    with tempfile.TemporaryDirectory() as work:
        source, alone, out = (Path(work, name) for name in ("in", "alone", "out"))
        alone.mkdir()
        run = partial(upscale, SMALL[2])
        paths = scans(source, count, *SMALL[:2])
        run("-i", paths[0], "-o", Path(work, "first.nii.gz"))  # the graph that every command finds in the cache
        rows = [{"how": "one by one", "seconds": sum(run("-i", p, "-o", alone / p.name) for p in paths)}]
        rows.append({"how": "batch", "seconds": run("-i", source, "-o", out, "--skip-existing")})
        for path in paths:
            if not np.array_equal(nib.load(out / path.name).get_fdata(), nib.load(alone / path.name).get_fdata()):
                raise SystemExit(f"{path.name}: the batch made another image than the single command")
        before = stamps(out)
        rows.append({"how": "batch again", "seconds": run("-i", source, "-o", out, "--skip-existing")})
        rows[-1]["files written"] = len(set(stamps(out).items()) - set(before.items()))
    return rows


def cluster(count: int, precision: str) -> list[dict]:
    """Whole heads: what a second worker of one core is worth, beside two commands of one thread that know nothing of
    each other: what the processors themselves allow, whose cores share memory and clock."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work, "in")
        paths = scans(source, count, *WHOLE[:2])
        run = partial(side_by_side, WHOLE[2])
        same = ("--precision", precision)
        one = (*same, "--threads", 1, "-i")
        run((*one, paths[0], "-o", Path(work, "first.nii.gz")))
        halves = [(*one, *paths[i::2], "-o", Path(work, f"half{i}")) for i in range(2)]
        rows = {
            "one command": run((*same, "-i", source, "-o", Path(work, "all"))),
            "one of one thread": run((*one, source, "-o", Path(work, "alone"))),
            "two of one thread, half of the scans each": run(*halves),
        }
        for workers in (1, 2):
            words = ("--cluster", "local", "--workers", workers, "--worker-cores", 1)
            out = Path(work, f"workers{workers}")
            rows[" ".join(map(str, words))] = run((*same, "-i", source, "-o", out, *words))
    what = f"{count} whole heads, {precision}"
    return [{"what": what, "how": how, "seconds": seconds} for how, seconds in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=10)
    parser.add_argument("--cluster", action="store_true")
    record.add_place(parser)
    args = parser.parse_args()
    loads = [round(os.getloadavg()[0], 1)]
    rows = [{"what": f"{args.scans} small heads", **row} for row in measure(args.scans)]
    for precision, count in {"float32": 2 * args.scans, "auto": args.scans}.items() if args.cluster else ():
        rows += cluster(count, precision)
    rows = [{**row, "seconds": round(row["seconds"], 1)} for row in rows]
    loads.append(round(os.getloadavg()[0], 1))
    facts = {"scans": args.scans, "small": SMALL, "whole": WHOLE, "load": loads}
    record.write("many_scans", {**facts, "rows": rows}, args.results)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
