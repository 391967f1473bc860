"""Volumes per hour and latencies of one job, through `mrisr.upscale` and through libmrisr, side by side in one run.

    python benchmarks/throughput.py --library PATH/libmrisr.so [--input head] [--threads 2] [--volumes 10]

Both take the same bundle, exported here, and the same threads, in float32 and, where the processor has it, in bfloat16;
volumes alternate between all of them, so that a machine that slows down slows all. Results are compared before anything
is timed. Start-up is measured in processes of its own, up to a planned job: once with an empty cache of compiled
networks, then with what that run left there. Writes throughput.json and throughput.md; `--shape X Y Z` stands for a
smaller job, of which nothing is written.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import checkout
import record

# Largest difference of the two ways in one precision, as a share of p99.9 - p0.1.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3}
PERCENTILES = (50, 90, 99)
BUDGET = 12 * 10**9  # bytes: both in one process, and neither may have to cut the head into tiles


def run(library: Path, kind="head", threads=2, volumes=10, shape=None, folder: Path = record.UNRECORDED) -> dict:
    """Measure both ways, write the files where it is the reference job, and return the content."""
    from mrisr.export.build import export_bundle
    from mrisr.weights import registry

    scan = cases.reference_scan(kind) if shape is None else cases.head(shape)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        export_bundle(registry.load("base"), bundle)
        pairs = _pairs(library, bundle, scan, threads)
        differences = {}
        for precision, pair in pairs.items():
            differences[precision] = difference = _difference(pair)
            if not difference <= TOLERANCE[precision]:
                raise RuntimeError(f"in {precision} the results differ by {difference:.2g} of the range; not timed")
        ways = {f"{name}, {precision}": once for precision, pair in pairs.items() for name, once in pair.items()}
        seconds = {name: [] for name in ways}
        for _ in range(volumes):
            for name, once in ways.items():
                start = time.perf_counter()
                once()
                seconds[name].append(time.perf_counter() - start)
        starts = [_start(library, bundle, scan.shape, threads, Path(scratch) / "cache") for _ in range(3)]
    content = {
        "job": f"{kind}, {' x '.join(map(str, scan.shape))} at 1 mm to {cases.REFERENCE_TARGET} mm, no file I/O",
        "threads": threads,
        "volumes": volumes,
        "difference": differences,
        "ways": {name: _summary(values) for name, values in seconds.items()},
        "library_beside_python": {
            precision: round(
                float(np.median(seconds[f"libmrisr, {precision}"]) / np.median(seconds[f"mrisr.upscale, {precision}"])),
                3,
            )
            for precision in pairs
        },
        "start_s": {"cold": starts[0], "warm": starts[1:]},
    }
    if shape is None:
        path = record.write("throughput", content, folder)
        path.with_suffix(".md").write_text(_table(json.loads(path.read_text())), encoding="utf-8")
    return content


def _pairs(library: Path, bundle: Path, scan: np.ndarray, threads: int) -> dict[str, dict]:
    """precision -> name -> what makes one volume; the processor's own precision beside float32, where it is another."""
    import mrisr

    words = bindings()
    lib = words.Library(library)
    model, loaded = lib.open(bundle), mrisr.load_model(bundle)
    same = dict(voxel_size=cases.REFERENCE_TARGET, threads=threads, memory=BUDGET)

    def pair(precision: str, job) -> dict:
        how = dict(input_voxel_size=1.0, model=loaded, engine="openvino", precision=precision, **same)
        return {"mrisr.upscale": lambda: mrisr.upscale(scan, **how), "libmrisr": lambda: lib.run(job, scan).data}

    names = {number: name for name, number in words.PRECISION.items()}
    pairs = {}
    for request in ("float32", "auto"):
        job = lib.plan(model, scan.shape, np.eye(4), precision=words.PRECISION[request], **same)
        precision = names[lib.geometry(job).precision]
        if precision not in pairs:
            pairs[precision] = pair(precision, job)
    return pairs


def bindings():
    """tests/runtime/libmrisr.py, which has the structures of the C header."""
    spec = importlib.util.spec_from_file_location("libmrisr", checkout.ROOT / "tests" / "runtime" / "libmrisr.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["libmrisr"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def _difference(ways: dict) -> float:
    expected, answer = (ways[name]() for name in ("mrisr.upscale", "libmrisr"))
    low, high = np.percentile(expected, (0.1, 99.9))
    return float(np.abs(answer - expected).max() / (high - low))


def _summary(seconds: list[float]) -> dict:
    return {
        "volumes_per_hour": round(3600 * len(seconds) / sum(seconds), 1),
        "seconds": {f"p{p}": round(float(np.percentile(seconds, p)), 3) for p in PERCENTILES},
        "slowest": round(max(seconds), 3),
    }


def _start(library: Path, bundle: Path, shape, threads: int, cache: Path) -> float:
    """Seconds that a fresh process takes for mrisr_open and mrisr_plan."""
    cache.mkdir(exist_ok=True)
    words = [sys.executable, __file__, "--library", str(library), "--start", str(bundle), "--cache", str(cache)]
    words += ["--threads", str(threads), "--shape", *map(str, shape)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def _open_and_plan(library: Path, bundle: str, shape, threads: int, cache: str) -> float:
    lib = bindings().Library(library)
    start = time.perf_counter()
    model = lib.open(bundle, cache=cache.encode())
    lib.plan(model, shape, np.eye(4), voxel_size=cases.REFERENCE_TARGET, threads=threads)
    return time.perf_counter() - start


def _table(content: dict) -> str:
    machine = content["machine"]

    def each(values: dict, form: str) -> str:
        return ", ".join(f"{value:{form}} in {precision}" for precision, value in values.items())

    lines = [
        "# Throughput",
        "",
        f"`python benchmarks/throughput.py`: {content['job']}; {content['volumes']} volumes each way, alternating; "
        f"{machine['cpu']}, {content['threads']} threads, load {machine['load']}; {content['date']}, commit "
        f"{content['commit'][:12]}. Largest difference of the two results: {each(content['difference'], '.0e')} of the "
        "range.",
        "",
        "| way | volumes per hour | median | p90 | p99 |",
        "|---|---|---|---|---|",
    ]
    for name, way in content["ways"].items():
        cells = " | ".join(f"{way['seconds'][f'p{p}']:.2f} s" for p in PERCENTILES)
        lines.append(f"| {name} | {way['volumes_per_hour']:g} | {cells} |")
    starts = content["start_s"]
    warm = ", ".join(f"{s:.2f} s" for s in starts["warm"])
    lines += [
        "",
        f"libmrisr's seconds beside those of mrisr.upscale: {each(content['library_beside_python'], '.3f')} (medians). "
        f"Opening and planning in a fresh process: {starts['cold']:.2f} s without a cache, {warm} with one.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True, metavar="SO", help="libmrisr.so with its engine")
    parser.add_argument("--input", choices=cases.INPUTS, default="head")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--volumes", type=int, default=10)
    parser.add_argument("--shape", nargs=3, type=int, help="of a made-up head in place of the reference job")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    record.add_place(parser)
    args = parser.parse_args()
    if args.start:
        print(_open_and_plan(args.library, args.start, args.shape, args.threads, args.cache))
        return 0
    shape = None if args.shape is None else tuple(args.shape)
    content = run(args.library.resolve(), args.input, args.threads, args.volumes, shape, args.results)
    print(json.dumps({k: content[k] for k in ("ways", "library_beside_python", "start_s", "difference")}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
