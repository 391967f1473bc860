"""Latency of libmrisr as a scanner meets it: slabs of 4, 12 and 32 slices and a head; first run and warm ones.

    python benchmarks/latency.py --library PATH/libmrisr.so [--threads 2] [--warm 3] [--record]

Each job in a process of its own: opened, planned, run once (the network is compiled), then warm. As the library chooses
its tiles and with a fixed tile; in float32 and in the precision that the library chooses for the processor. The load of
the machine stands in the result: on a busy one only the ratios mean something. Writes latency.json and latency.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import checkout
import record

# name -> shape, voxel size, size of the result, fixed tile
JOBS = {
    "slab, 4 slices": ((192, 192, 4), (1.0, 1.0, 4.0), (1.0, 1.0, 1.0), (96, 96, 48)),
    "slab, 12 slices": ((192, 192, 12), (1.0, 1.0, 4.0), (1.0, 1.0, 1.0), (96, 96, 48)),
    "slab, 32 slices": ((192, 192, 32), (1.0, 1.0, 4.0), (1.0, 1.0, 1.0), (96, 96, 48)),
    "head": ((160, 192, 160), (1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (96, 96, 96)),
}


WAYS = [(tiles, precision) for tiles in ("chosen", "fixed") for precision in ("float32", "auto")]


def one(library: Path, bundle: Path, name: str, fixed: bool, precision: str, threads: int, warm: int) -> dict:
    """In a process of its own: seconds to open and plan, of the first run, of the warm ones; seconds of compilation."""
    import numpy as np

    sys.path.insert(0, str(checkout.ROOT / "tests" / "runtime"))
    from libmrisr import LOG, PRECISION, Library

    log_lines: list[str] = []
    log = LOG(lambda user, level, text: log_lines.append(text.decode()))
    shape, voxel, size, tile = JOBS[name]
    scan = cases.head(shape)
    start = time.perf_counter()
    lib = Library(library)
    model = lib.open(bundle, log=log)
    more = {"precision": PRECISION[precision]} | ({"tile": tile, "tile_fixed": 1} if fixed else {})
    job = lib.plan(model, shape, np.diag([*voxel, 1.0]), voxel_size=size, threads=threads, **more)
    planned = time.perf_counter() - start
    runs = []
    for _ in range(1 + warm):
        start = time.perf_counter()
        answer = lib.run(job, scan)
        runs.append(time.perf_counter() - start)
    compiled = [float(text.split(" in ")[-1].split()[0]) for text in log_lines if text.startswith("engine:")]
    return {
        "job": name,
        "tiles": "fixed" if fixed else "chosen",
        "asked": precision,
        "precision": {number: word for word, number in PRECISION.items()}[lib.geometry(job).precision],
        "out": list(answer.data.shape),
        "tile": list(answer.info.tile),
        "tiles_run": answer.info.tiles_run,
        "planned": planned,
        "first": runs[0],
        "warm": median(runs[1:]),
        "compiled": sum(compiled),
        "compilations": len(compiled),
        "load": round(os.getloadavg()[0], 1),
    }


def _exported(folder: Path) -> Path:
    from mrisr.export.build import export_bundle
    from mrisr.weights import registry

    export_bundle(registry.load("base"), folder)
    return folder


def text(content: dict) -> str:
    lines = [
        "# Latency of libmrisr",
        "",
        f"`python benchmarks/latency.py --record`: {content['threads']} threads, model {content['model']}, "
        f"{', '.join(content['machine']['features'])}, one process per line, medians of the warm runs; seconds of wall "
        f"time, no file I/O. Load: runnable processes on {os.cpu_count()} cores during that line; above their number "
        "the seconds are those of a machine that was shared, and an idle one is faster.",
        "",
        "| job | voxels out | tiles | tile | precision | open and plan | first run | of that, compiling | warm run "
        "| load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in content["rows"]:
        out, tile = (" x ".join(map(str, r[key])) for key in ("out", "tile"))
        lines.append(
            f"| {r['job']} | {out} | {r['tiles_run']}, {r['tiles']} | {tile} | {r['precision']} | {r['planned']:.1f} | "
            f"{r['first']:.1f} | {r['compiled']:.1f} | {r['warm']:.1f} | {r['load']} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="of the kit, for example (default: base, exported for this)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--one", nargs=4, metavar=("BUNDLE", "JOB", "TILES", "PRECISION"), help=argparse.SUPPRESS)
    record.add_place(parser)
    options = parser.parse_args()
    if options.one:
        bundle, name, tiles, precision = options.one
        row = one(options.library, Path(bundle), name, tiles == "fixed", precision, options.threads, options.warm)
        print(json.dumps(row))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = options.bundle or _exported(Path(scratch) / "bundle")
        for name in options.only:
            for tiles, precision in WAYS:
                words = [sys.executable, __file__, "--library", options.library, "--threads", options.threads]
                words += ["--warm", options.warm, "--one", bundle, name, tiles, precision]
                process = subprocess.run([str(w) for w in words], stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(process.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
                merged = record.merged("latency", rows, ("job", "tiles", "asked"), options.results)
                order = [(job, *way) for job in JOBS for way in WAYS]
                rows_now = sorted(merged, key=lambda r: order.index((r["job"], r["tiles"], r["asked"])))
                record.write(
                    "latency", {"model": "base", "threads": options.threads, "rows": rows_now}, options.results
                )
                path = options.results / "latency.json"
                path.with_suffix(".md").write_text(text(json.loads(path.read_text())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
