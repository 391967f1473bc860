"""Ten small scans: one command each, one batch, and the batch again, which writes nothing.

    python benchmarks/many_scans.py [--scans 10] [--cluster] [--record]

Heads of 48 x 56 x 44 voxels of 2 mm to 1.5 mm by the weights that ship: small, so that what a batch saves (starting
Python, loading PyTorch and the model, compiling the graph) is most of it. `--cluster` adds `--cluster local` of 1 and 2
workers. Other programs' load at the start and the end is part of the result.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checkout  # noqa: F401 - before mrisr
import nibabel as nib
import numpy as np
import record

SHAPE, VOXEL, TARGET = (48, 56, 44), 2.0, "1.5"


def scan(path: Path, seed: int) -> None:
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((axes**2).sum(axis=0))
    folds = 500 + 250 * np.sin(19 * axes[0]) * np.sin(17 * axes[1]) * np.sin(15 * axes[2])
    noise = np.random.default_rng(seed).normal(0, 5, (2, *SHAPE))
    data = np.hypot(np.where(radius < 0.7, folds, 0) + noise[0], noise[1])
    nib.save(nib.Nifti1Image(data.astype(np.int16), np.diag([-VOXEL, VOXEL, VOXEL, 1])), path)


def upscale(*words: object) -> float:
    """Seconds of one command."""
    command = [sys.executable, "-m", "mrisr.cli.main", "upscale", "--voxel-size", TARGET, "--quiet", *map(str, words)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return time.perf_counter() - start


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def measure(count: int, cluster: bool) -> list[dict]:
    with tempfile.TemporaryDirectory() as work:
        source, alone, out = (Path(work, name) for name in ("in", "alone", "out"))
        for folder in (source, alone):
            folder.mkdir()
        paths = [source / f"{index}.nii.gz" for index in range(count)]
        for index, path in enumerate(paths):
            scan(path, index)
        upscale("-i", paths[0], "-o", Path(work, "first.nii.gz"))  # the graph that every command finds in the cache
        rows = [{"how": "one by one", "seconds": sum(upscale("-i", p, "-o", alone / p.name) for p in paths)}]
        rows.append({"how": "batch", "seconds": upscale("-i", source, "-o", out, "--skip-existing")})
        for path in paths:
            if not np.array_equal(nib.load(out / path.name).get_fdata(), nib.load(alone / path.name).get_fdata()):
                raise SystemExit(f"{path.name}: the batch made another image than the single command")
        before = stamps(out)
        rows.append({"how": "batch again", "seconds": upscale("-i", source, "-o", out, "--skip-existing")})
        rows[-1]["files written"] = len(set(stamps(out).items()) - set(before.items()))
        for workers in (1, 2) if cluster else ():
            words = ("--cluster", "local", "--workers", workers, "--worker-cores", 1)
            seconds = upscale("-i", source, "-o", Path(work, f"workers{workers}"), *words)
            rows.append({"how": f"--cluster local --workers {workers} --worker-cores 1", "seconds": seconds})
    return [{**row, "seconds": round(row["seconds"], 1)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=10)
    parser.add_argument("--cluster", action="store_true")
    record.add_place(parser)
    args = parser.parse_args()
    loads = [round(os.getloadavg()[0], 1)]
    rows = measure(args.scans, args.cluster)
    loads.append(round(os.getloadavg()[0], 1))
    facts = {"scans": args.scans, "shape": SHAPE, "voxel_mm": VOXEL, "target_mm": float(TARGET), "load": loads}
    record.write("many_scans", {**facts, "rows": rows}, args.results)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
