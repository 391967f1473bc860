"""A real SLURM: the job array, --cluster slurm with a job cancelled in the middle, and what sbatch refuses.

`make slurm` starts it (tests/slurm/run.sh); elsewhere there is none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow("starts a SLURM and five jobs"),
    pytest.mark.skipif("SLURM_CONF" not in os.environ or not shutil.which("sbatch"), reason="run by make slurm"),
]
MRISR = str(Path(sys.executable).with_name("mrisr"))


def test_the_job_array(make_scans, weights, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    make_scans(raw, *(f"sub-{name}/anat/sub-{name}_T1w.nii.gz" for name in ("01", "02")))
    (raw / "dataset_description.json").write_text('{"Name": "Test", "BIDSVersion": "1.10.0"}')
    script = ROOT / "examples/slurm/array.sbatch"
    words = ["sbatch", "--wait", "--array=1-3", "--cpus-per-task=1", "--mem=1500M", f"--output={tmp_path}/%a.txt"]
    words += [script, raw, out, "--model", weights, "--voxel-size", "1.5", "--engine", "torch"]
    done = subprocess.run(list(map(str, words)), env={**os.environ, "MRISR": MRISR}, capture_output=True, text=True)
    said = "".join(path.read_text() for path in sorted(tmp_path.glob("*.txt")))
    assert done.returncode == 0, done.stderr + said
    made = {p.relative_to(out).as_posix() for p in out.rglob("*.nii.gz")}
    assert made == {f"sub-{n}/anat/sub-{n}_res-1p5mm_desc-sr_T1w.nii.gz" for n in ("01", "02")}
    assert "task 3" in said and "has 2 participants; nothing to do" in said


def test_a_cancelled_job_is_replaced_and_nothing_is_lost(make_scans, weights, tmp_path):
    source, out, ledger = tmp_path / "in", tmp_path / "out", tmp_path / "ledger"
    make_scans(source, *(f"{seed}.nii.gz" for seed in range(8)))
    ledger.touch()
    environment = {
        **os.environ,
        "LEDGER": str(ledger),
        "LEDGER_SECONDS": "0.5",
        "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(ROOT / "tests/batch/cluster_worker.py")]),
    }
    words = ["upscale", "-i", source, "-o", out, "--model", weights, "--voxel-size", 1.5, "--engine", "torch"]
    words += ["--cluster", "slurm", "--workers", 2, "--worker-cores", 1, "--worker-memory", "1500MB"]
    with subprocess.Popen(
        [MRISR, *map(str, words)], env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        cancelled = cancel_one(ledger, process)
        _, said = process.communicate(timeout=400)
    assert process.returncode == 0 and cancelled, said
    lines = [line.split() for line in ledger.read_text().splitlines()]
    starts = Counter(name for what, name, _ in lines if what == "start")
    written = Counter(name for what, name, _ in lines if what == "written")
    names = {f"{seed}.nii.gz" for seed in range(8)}
    assert written == dict.fromkeys(names, 1) and starts.keys() == names and sum(starts.values()) <= 10, lines
    assert {p.name for p in out.glob("*.nii.gz")} == names and not list(out.glob(".mrisr-*"))
    jobs = {p.stem for p in (out / "logs").glob("mrisr-*.err")}
    assert len(jobs) >= 2 and not list((out / "logs").glob(".*")), said
    assert "8 scans in" in said and "8 done" in said


def cancel_one(ledger: Path, process: subprocess.Popen) -> str | None:
    """scancel of a job once two scans are written; its number."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if ledger.read_text().count("written") >= 2:
            listed = ["squeue", "--noheader", "--format=%i", "--name=mrisr", "--states=RUNNING"]
            running = subprocess.run(listed, capture_output=True, text=True).stdout.split()
            subprocess.run(["scancel", running[-1]], check=True)
            return running[-1]
        time.sleep(0.1)
    return None


def test_what_sbatch_refuses_is_said(make_scans, weights, tmp_path):
    make_scans(tmp_path / "in", "a.nii")
    words = ["upscale", "-i", tmp_path / "in", "-o", tmp_path / "out", "--model", weights, "--cluster", "slurm"]
    done = subprocess.run(
        [MRISR, *map(str, words), "--sbatch=--partition=none"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7 and "sbatch does not take the job" in done.stderr, done.stderr
    assert "partition" in done.stderr and not list((tmp_path / "out").glob("*.nii"))
