"""Everything worth doing on a GPU (H100, H200 or another), in calls of at most 540 seconds, in order of value.

    python benchmarks/gpu_day.py [--out DIR] [--site DIR] [--only PART ...] [--redo] [--budget SECONDS] [--pack FILE]
    python benchmarks/gpu_day.py --dry-run        every part's steps on the CPU, at sizes of nothing

The first five minutes settle what nobody has seen (SETTLE: parity of every kernel, mrisr.upscale beside the CPU, CUDA
graphs, memory, the reference job); then the kernels race (RACE); what is left trains (TRAIN). Needs Python, PyTorch and
NumPy, and in --site what gpu_site.py puts there; nvcc for the CUDA C++ kernels. No network, nothing installed. DIR
(default $OUT, else out/benchmarks) receives gpu_day.json, one entry per part, in one file so that it is easily carried
home and back, and gpu_day.log. The same command again, with that file in DIR, goes on with what is not done: a part
that failed or ran out of time is tried again, a done one is left alone (--redo does it again).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
if "--site" in sys.argv[:-1]:  # before anything of it is imported; children find it in their environment
    SITE = str(Path(sys.argv[sys.argv.index("--site") + 1]).resolve())
    sys.path.append(SITE)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), SITE)))

import checkout  # noqa: F401
import record
from gpu_setting import Setting, summary

from mrisr.io.atomic import replacing

# Part -> its time limit in seconds, in order of value; the functions are in gpu_*.py.
SETTLE = {
    "environment": 40,
    "build": 120,
    "parity": 150,
    "agreement": 50,
    "capture": 50,
    "memory": 60,
    "reference": 60,
}
RACE = {
    "kernels": 240,
    "attention": 120,
    "conv3d": 120,
    "network": 180,
    "loop": 120,
    "teacher": 120,
    "profile": 60,
    "sanitizer": 300,
}
TRAIN = {"training": 3600, "distillation": 3600}
LIMITS = {**SETTLE, **RACE, **TRAIN}
BUDGET = 540  # seconds of one call on a GPU
LEAST = 1 / 3  # of its limit: with less time left a part is not begun
DONE, FAILED, LATE = "done", "failed", "out of time"


def function_of(part: str):
    """The function of a part: takes a Setting, returns plain JSON; "failures" in it makes the part a failure."""
    import gpu_network
    import gpu_parts
    import gpu_training

    modules = (gpu_parts, gpu_network, gpu_training)
    return next(getattr(module, part) for module in modules if hasattr(module, part))


def entry(part: str, setting) -> dict:
    """Do a part here and now, and describe how it ended."""
    start = time.perf_counter()
    try:
        content = function_of(part)(setting)
        status = FAILED if content.get("failures") else DONE
    except Exception as error:  # noqa: BLE001 - every part is tried; what went wrong is the result
        traceback.print_exc()
        content, status = {"failures": [f"{type(error).__name__}: {error}"]}, FAILED
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), **content, **record.circumstances()}


def apart(part: str, setting, limit: float, log: Path) -> dict:
    """Do a part in a process of its own, ended with all its children when the limit is over."""
    answer = log.with_name(f"{part}.json.part")
    answer.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", part, "--answer", str(answer), "--device", setting.device]
    command += ["--train", setting.train] if setting.train else []
    command += ["--pack", setting.pack] if setting.pack else []
    command += ["--site", setting.site] if setting.site else []
    command += ["--out", str(setting.out)]
    command += ["--dry-run"] if setting.tiny else []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {"status": LATE, "limit_s": limit}
    if not answer.exists():
        return {"status": FAILED, "failures": [f"ended with {process.returncode}; see {log.name}"]}
    content = json.loads(answer.read_text())
    answer.unlink()
    return content


class Store:
    """gpu_day.json: written whole after every part."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "gpu_day.json"
        earlier = self.path if self.path.exists() else record.RESULTS / "gpu_day.json"
        self.parts = json.loads(earlier.read_text()) if earlier.exists() else {}

    def keep(self, part: str, content: dict) -> None:
        self.parts[part] = content
        with replacing(self.path, force=True) as beside:
            beside.write_text(json.dumps(self.parts, indent=2) + "\n", encoding="utf-8")


def setting_of(options: argparse.Namespace) -> Setting:
    """What the parts are told."""
    pack = str(options.pack.resolve()) if options.pack else ""
    return Setting(options.device, options.dry_run, options.train, pack, options.out.resolve(), options.site)


def run(options: argparse.Namespace) -> int:
    """Do the parts that are asked for and not done yet; 1 where one failed or none had the time."""
    store, end = Store(options.out), time.monotonic() + options.budget
    setting = setting_of(options)
    for part in options.only or LIMITS:
        if not options.redo and store.parts.get(part, {}).get("status") == DONE and part != "build":
            print(f"{part}: done before ({store.parts[part]['date']}, commit {store.parts[part]['commit']})")
            continue
        rest, limit = end - time.monotonic(), options.limit or LIMITS[part]
        if rest < (60 if part in TRAIN else LEAST * limit):
            print(f"{part}: no time left")
            continue
        limit = min(limit, rest)
        in_process = options.dry_run and not options.limit
        content = entry(part, setting) if in_process else apart(part, setting, limit, options.out / "gpu_day.log")
        store.keep(part, content)
        print(summary(part, content), flush=True)
    states = [store.parts.get(part, {}).get("status") for part in options.only or LIMITS]
    return 0 if all(status == DONE for status in states) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or record.UNRECORDED))
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), metavar="PART", help=", ".join(LIMITS))
    parser.add_argument("--redo", action="store_true", help="do parts again that are done")
    parser.add_argument(
        "--budget", type=float, help=f"seconds for all parts together (default: {BUDGET}, any in a dry run)"
    )
    parser.add_argument("--site", default="", metavar="DIR", help="packages that were carried here (gpu_site.py)")
    parser.add_argument("--limit", type=float, help="seconds for each part, in place of its own limit")
    parser.add_argument(
        "--train", default="", metavar="COMMAND", help="a training run to hand the machine over to, last"
    )
    parser.add_argument("--pack", type=Path, help="scans (mrisr pack): teacher and student are trained on them, last")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at sizes of nothing: does it run?")
    parser.add_argument("--device", help="default: cuda, and cpu in a dry run")
    parser.add_argument("--part", choices=list(LIMITS), help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device or ("cpu" if options.dry_run else "cuda")
    if options.budget is None:
        options.budget = float("inf") if options.dry_run else BUDGET
    if options.part:
        content = entry(options.part, setting_of(options))
        options.answer.write_text(json.dumps(content))
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
