"""Exact tiling: time, memory and error of `tile="exact"` beside one piece and beside blended tiles.

    python benchmarks/exact_tiling.py [--part reference] [--part fine] [--threads N] [--repeats 2]

`reference` is the reference job (1 mm head to 0.7 mm), `fine` the same head to 0.35 mm (168 million voxels; takes
about 10 GB and some minutes), both in float32. Every row is a process of its own, so that its peak memory is its own;
the rows of a part are compared with the first one, which runs the module's own forward in one piece where that fits,
else the program over slabs in memory. A row whose result differs by more than it may is an error and nothing is
written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import record

EXACT = 1e-5  # largest difference, as a share of p99.9 - p0.1
BLENDED = 1e-2

# name -> (arguments of upscale, largest error); the first row of a part is what the others are compared with.
PARTS = {
    "reference": {
        "one piece, module": ({"engine": "torch", "memory": "12GB", "plain": True}, 0.0),
        "one piece, slabs": ({"engine": "torch", "memory": "12GB"}, EXACT),
        "one piece, OpenVINO": ({"engine": "openvino", "memory": "12GB"}, EXACT),
        "exact": ({"tile": "exact", "memory": "12GB"}, EXACT),
        "exact, 2 GB": ({"tile": "exact", "memory": "2GB"}, EXACT),
        "exact, 1.6 GB": ({"tile": "exact", "memory": "1.6GB"}, EXACT),
        "blended, 2 GB": ({"engine": "openvino", "memory": "2GB"}, BLENDED),
        "blended, 1.6 GB": ({"engine": "openvino", "memory": "1.6GB"}, BLENDED),
    },
    "fine": {
        "exact, 10 GB": ({"tile": "exact", "memory": "10GB"}, 0.0),
        "exact, 6 GB": ({"tile": "exact", "memory": "6GB"}, EXACT),
    },
}
TARGETS = {"reference": cases.REFERENCE_TARGET, "fine": 0.35}


def run(parts=("reference",), threads: int | None = None, repeats: int = 1, folder: Path = record.UNRECORDED) -> dict:
    """Measure the parts, write `exact_tiling.json` into `folder` (parts that it holds already are kept)."""
    earlier, stamp = record.previous("exact_tiling", folder)
    content = {"parts": {p: [{"measured": stamp, **row} for row in r] for p, r in earlier.get("parts", {}).items()}}
    for part in parts:
        with tempfile.TemporaryDirectory() as scratch:
            content["parts"][part] = [_row(part, name, threads, repeats, Path(scratch)) for name in PARTS[part]]
        first = content["parts"][part][0]
        for row in content["parts"][part]:
            row["time_ratio"] = round(row["network_s"] / first["network_s"], 3)
    record.write("exact_tiling", content, folder)
    return content


def _row(part: str, name: str, threads: int | None, repeats: int, scratch: Path) -> dict:
    words = [sys.executable, __file__, "--part", part, "--row", name, "--scratch", str(scratch)]
    words += ["--repeats", str(repeats)] + (["--threads", str(threads)] if threads else [])
    process = subprocess.run(words, check=False)
    if process.returncode:
        raise RuntimeError(f"exact_tiling: {part}, {name} ended with {process.returncode}")
    row = json.loads((scratch / "row.json").read_text())
    print(json.dumps(row), flush=True)
    return row


def measure(part: str, name: str, threads: int | None, repeats: int, scratch: Path) -> dict:
    """One row, in this process."""
    import mrisr
    from mrisr.infer.engines import torch as engine
    from mrisr.infer.memory import parse_budget, peak_resident

    options, limit = PARTS[part][name]
    options = dict(options)
    if options.pop("plain", False):
        engine.TorchEngine.prepare = _module_forward
    scan, seconds, network = cases.reference_scan("mni"), [], []
    for _ in range(repeats):
        out = info = None  # what is held of the run before would count as the process's own
        start = time.perf_counter()
        out, info = mrisr.upscale(
            scan, input_voxel_size=1.0, voxel_size=TARGETS[part], threads=threads, device="cpu", return_info=True,
            precision="float32", **options,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        network.append(info.seconds["network"])
    peak = peak_resident()
    first = scratch / "first.npy"
    if not first.exists():
        np.save(first, out)
    expected = np.load(first, mmap_mode="r")
    sample = np.asarray(expected[::2, ::2, ::2])
    scale = np.percentile(sample, 99.9) - np.percentile(sample, 0.1)
    error = max(float(np.abs(out[i] - expected[i]).max()) for i in range(len(out))) / scale
    if not error <= limit:
        raise RuntimeError(f"exact_tiling: {name} differs by {error:.1e} of the range, allowed is {limit:.0e}")
    budget = parse_budget(options["memory"])
    if peak > budget:
        raise RuntimeError(f"exact_tiling: {name} took {peak / 1e9:.2f} GB of {budget / 1e9:.2f} GB")
    return {
        "name": name,
        "kind": info.tiles.kind,
        "voxels": int(np.prod(out.shape)),
        "budget_gb": budget / 1e9,
        "peak_gb": round(peak / 1e9, 2),
        "expected_gb": round(info.memory_expected / 1e9, 2),
        "spilled_gb": round(info.tiles.spilled / 1e9, 2),
        "seconds": round(min(seconds), 2),
        "network_s": round(min(network), 2),
        "max_error": float(f"{error:.2e}"),
        "seam_error": None if info.tiles.seam_error is None else float(f"{info.tiles.seam_error:.2e}"),
        "threads": info.engine.threads,
    }


def _module_forward(self, shape, **how):
    """The engine as it is on other devices: the module's own forward, channels-last."""
    import torch

    def network(x, y, vector, guidance, active=None):
        with torch.inference_mode():
            return self._net(x, y, vector, guidance, active)

    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="default: reference")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    record.add_place(parser)
    options = parser.parse_args()
    if options.row:
        row = measure(options.part[0], options.row, options.threads, options.repeats, options.scratch)
        (options.scratch / "row.json").write_text(json.dumps(row))
        return
    run(options.part or ("reference",), options.threads, options.repeats, options.results)


if __name__ == "__main__":
    main()
