"""gpu_day.py where it can be tried without a GPU: its control flow, on a machine as bare as those it is meant for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_day.py"

# What such a machine lacks; hidden from import and from importlib.util.find_spec alike.
ABSENT = {
    "nibabel",
    "openvino",
    "rich",
    "scipy",
    "PIL",
    "nilearn",
    "monai",
    "matplotlib",
    "sklearn",
    "pydicom",
    "pytest",
}
BARE = f"""
import importlib.machinery as machinery, runpy, sys
real = machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {ABSENT} else real(name, path, target)
machinery.PathFinder.find_spec = classmethod(find_spec)
# An editable install is forgotten too: the checkout alone has to do.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [entry for entry in sys.path if "editable" not in entry]
sys.argv = ["gpu_day.py", *sys.argv[1:]]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def day(*options: object, bare: bool = False) -> subprocess.CompletedProcess:
    start = ["-c", BARE] if bare else [str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")


def parts(folder: Path) -> dict:
    return json.loads((folder / "gpu_day.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("day")
    run = day("--dry-run", "--out", folder, bare=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder


def test_every_part_runs_on_a_bare_machine(done):
    found = parts(done)
    assert {name: part["status"] for name, part in found.items()} == dict.fromkeys(found, "done")
    assert list(found)[:4] == ["environment", "build", "parity", "kernels"] and len(found) == 14
    assert found["environment"]["ceilings"]["copy_gb_per_s"] > 0
    assert found["training"]["last"]["step"] == found["distillation"]["last"]["step"] == 2
    assert 0 < found["training"]["last"]["data_share"] <= 1
    assert found["kernels"]["rows"] and found["conv3d"]["rows"] and found["network"]["rows"]


def test_what_is_done_is_left_alone(done):
    before = parts(done)
    run = day("--dry-run", "--out", done, "--only", "environment", "conv3d")
    assert run.stdout.count("done before") == 2 and parts(done) == before


def test_a_part_that_takes_too_long_is_ended_and_tried_again(tmp_path):
    run = day("--dry-run", "--out", tmp_path, "--only", "environment", "--limit", 0.05)
    assert run.returncode == 1 and parts(tmp_path)["environment"]["status"] == "out of time"
    run = day("--dry-run", "--out", tmp_path, "--only", "environment", "--limit", 100)  # in a process of its own
    assert run.returncode == 0 and parts(tmp_path)["environment"]["status"] == "done"


def test_a_part_that_fails_says_so(tmp_path):
    run = day("--dry-run", "--out", tmp_path, "--only", "training", "--train", "exit 3")
    assert run.returncode == 1 and "FAIL ended with 3" in run.stdout
    assert parts(tmp_path)["training"]["status"] == "failed"


def test_a_budget_ends_the_day(tmp_path):
    run = day("--dry-run", "--out", tmp_path, "--only", "environment", "--budget", 0)
    assert run.returncode == 1 and "environment: no time left" in run.stdout
