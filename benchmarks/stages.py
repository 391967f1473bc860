"""Where the reference job goes, file to file: seconds of the processors and of the clock, and memory, stage by stage.

    python benchmarks/stages.py [--compare COMMIT] [--input head] [--rounds 2] [--record]

Two ways, the command and Python (`mrisr.io.nifti.read`, `mrisr.upscale`, `mrisr.io.nifti.write`), each in processes of
their own: cold with an empty cache of mrisr's, then warm with what that has left. With --compare the same of another
commit, in turns. A stage's seconds are its own: what it imports counts as "import".
"""

from __future__ import annotations

import argparse
import builtins
import functools
import importlib
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

WAYS = ("command", "python")
CACHES = ("cold", "warm")
# Function -> its stage; of those a commit has not, the seconds count for the stage that calls them.
STAGES = {
    "mrisr.io.nifti.read": "read",
    "mrisr.io.nifti.write": "write",
    "mrisr.weights.registry.load": "load model",
    "mrisr.infer.plan.choose": "engine",
    "mrisr.infer.start.robust_scale": "scale",
}


class Stopwatch:
    """Seconds, and the most memory, of one stage at a time, of this thread's; the innermost counts."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.open = ["rest"]
        self._thread = threading.get_ident()
        self._cpu, self._wall = 0.0, time.perf_counter()  # with what the interpreter took

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if threading.get_ident() != self._thread:
            yield
            return
        self._switch()
        self.open.append(name)
        try:
            yield
        finally:
            self._switch()
            self.open.pop()

    def _switch(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        entry = self.stages.setdefault(self.open[-1], {"cpu_s": 0.0, "wall_s": 0.0, "peak_mb": 0.0})
        entry["cpu_s"] += cpu - self._cpu
        entry["wall_s"] += wall - self._wall
        entry["peak_mb"] = max(entry["peak_mb"], _peak_mb())
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def results(self) -> dict[str, dict[str, float]]:
        self._switch()
        return {name: {key: round(value, 3) for key, value in row.items()} for name, row in self.stages.items()}

    def of(self, function: Callable, name: str) -> Callable:
        @functools.wraps(function)
        def timed(*args, **options):
            with self.stage(name):
                return function(*args, **options)

        return timed


def _peak_mb() -> float:
    """The most this process has held since the last call (on Linux; else 0)."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0.0
    return int(match.group(1)) / 1e3 if match else 0.0


def _watch_imports(watch: Stopwatch) -> None:
    plain, by_name = builtins.__import__, importlib.import_module

    def importing(name, *rest, **options):
        if name in sys.modules:
            return plain(name, *rest, **options)
        with watch.stage("import"):
            return plain(name, *rest, **options)

    builtins.__import__ = importing
    importlib.import_module = watch.of(by_name, "import")


def _watch_stages(watch: Stopwatch) -> None:
    with watch.stage("import"):
        from mrisr.infer.progress import Report

        for path, name in STAGES.items():
            module, _, function = path.rpartition(".")
            try:
                target = importlib.import_module(module)
            except ModuleNotFoundError:
                continue
            if hasattr(target, function):
                setattr(target, function, watch.of(getattr(target, function), name))
    plain = Report.stage

    @contextmanager
    def stage(report, name):
        with watch.stage(name), plain(report, name):
            yield

    Report.stage = stage


def child(args: argparse.Namespace) -> dict:
    """One job in this process."""
    import versus

    versus.own(args.root)
    watch = Stopwatch()
    _watch_imports(watch)
    if args.way == "command":
        with watch.stage("import"):
            from mrisr.cli.main import main as command
            from mrisr.cli.upscale import run  # noqa: F401 - what the command imports by itself
        load = getattr(sys.modules["mrisr.cli.upscale"], "load", None)
        if load is not None:
            with watch.stage("import"):
                load("mrisr.batch.scans")
                load("mrisr.api")
    _watch_stages(watch)
    words = ["--voxel-size", str(args.voxel_size)]
    if args.way == "command":
        code = command(["upscale", "-i", args.scan, "-o", args.result, "--device", "cpu", "--force", "--quiet", *words])
        if code:
            raise SystemExit(code)
    else:
        import mrisr
        from mrisr.io import nifti

        result = mrisr.upscale(nifti.read(args.scan), voxel_size=args.voxel_size, device="cpu")
        nifti.write(result, args.result, force=True)
    return {"stages": watch.results()}


def one(root: Path, way: str, scan: Path, folder: Path, voxel_size: float) -> dict:
    """Cold and warm, of the mrisr in `root`."""
    import versus

    rows = {}
    with tempfile.TemporaryDirectory() as cache:
        for state in CACHES:
            words = ["--way", way, "--scan", str(scan), "--result", str(folder / "out.nii.gz")]
            words += ["--voxel-size", str(voxel_size)]
            rows[state] = versus.run(root, __file__, *words, environment={"MRISR_CACHE": cache})["stages"]
    return rows


def measure(args: argparse.Namespace) -> dict:
    """Every way of every commit: {"job", "rows"}, the best of the rounds stage by stage."""
    import cases
    import nibabel
    import numpy as np
    import record
    import versus

    from mrisr import environment

    data = cases.head(tuple(args.shape)) if args.shape else cases.reference_scan(args.input)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        nibabel.save(nibabel.Nifti1Image(np.round(data).astype(np.int16), np.eye(4)), folder / "scan.nii.gz")
        roots = {"this": record.ROOT}
        rows = []

        commits = {"this": environment.commit() or "unknown"}
        with ExitStack() as stack:
            if args.compare:
                commits["other"] = versus.commit_of(args.compare)[:12]
                roots["other"] = stack.enter_context(versus.checkout_of(args.compare))
            for root in roots.values():
                versus.with_bytecode(root)
            for way in args.ways:
                run = partial(one, way=way, scan=folder / "scan.nii.gz", folder=folder, voxel_size=args.voxel_size)
                rows.extend(_rows(way, versus.in_turns(roots, run, args.rounds), commits))
    job = f"{' x '.join(map(str, data.shape))} at 1 mm to {args.voxel_size:g} mm, int16 .nii.gz to float32 .nii.gz"
    return {"job": job, "input": "head" if args.shape else args.input, "rounds": args.rounds, "rows": rows}


def _rows(way: str, results: dict[str, list[dict]], commits: dict[str, str]) -> list[dict]:
    rows = []
    for name, runs in results.items():
        for state in CACHES:
            stages = [run[state] for run in runs]
            best = {
                stage: {key: min(run.get(stage, {}).get(key, 0.0) for run in stages) for key in stages[0][stage]}
                for stage in stages[0]
            }
            total = {key: round(min(sum(s[key] for s in run.values()) for run in stages), 3) for key in KEYS[:2]}
            total["peak_mb"] = min(max(s["peak_mb"] for s in run.values()) for run in stages)
            rows.append({"way": way, "cache": state, "commit": commits[name], "stages": best, "all": total})
    return rows


KEYS = ("cpu_s", "wall_s", "peak_mb")


def table(content: dict) -> str:
    """CPU seconds (clock seconds, MB at most) per stage; a column per way, cache and commit."""
    names = list(dict.fromkeys(stage for row in content["rows"] for stage in row["stages"]))
    lines = [content["job"], "CPU seconds / clock seconds / MB at most", ""]
    heads = [f"{row['way']}, {row['cache']}, {row['commit']}" for row in content["rows"]]
    lines += ["| stage | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for name in (*names, "all"):
        cells = []
        for row in content["rows"]:
            s = row["all"] if name == "all" else row["stages"].get(name)
            cells.append("-" if s is None else f"{s['cpu_s']:.2f} / {s['wall_s']:.2f} / {s['peak_mb']:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    import cases
    import record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", metavar="COMMIT", help="measure this commit too, in turns")
    parser.add_argument("--input", default="head", choices=cases.INPUTS)
    parser.add_argument("--shape", nargs=3, type=int, help="a made-up head of this many voxels instead")
    parser.add_argument("--voxel-size", type=float, default=cases.REFERENCE_TARGET)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=2)
    record.add_place(parser)
    for hidden in ("--way", "--scan", "--result", "--root"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        args.answer.write_text(json.dumps(child(args)), encoding="utf-8")
        return 0
    content = measure(args)
    path = record.write("stages", content, args.results)
    print(table(content))
    print(f"\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
