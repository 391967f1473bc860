"""gpu_day.py where it can be tried without a GPU: its control flow, on a machine as bare as those it is meant for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_day.py"

sys.path.insert(0, str(SCRIPT.parent))
from gpu_site import CARRIED, REQUIRED  # noqa: E402 - beside the script, not in a package

# A machine that has PyTorch and what is carried there, and no network: in the script and in every process it starts.
BARE = f"""
import importlib.machinery as machinery, socket, sys
real = machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    found = real(name, path, target)
    place = str(getattr(found, "origin", None) or list(getattr(found, "submodule_search_locations", None) or ["" ])[0])
    here = "-packages" not in place or name.partition(".")[0] in {(*REQUIRED, *CARRIED.values())}
    return found if here else None
machinery.PathFinder.find_spec = classmethod(find_spec)
# An editable install is forgotten too: the checkout alone has to do.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [entry for entry in sys.path if "editable" not in entry]
def no_network(*args, **kwargs):
    raise OSError("this machine has no network")
socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = no_network
"""


def day(*options: object, bare: Path | None = None) -> subprocess.CompletedProcess:
    """The script; `bare`: a folder, then on a bare machine."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if bare:
        (bare / "sitecustomize.py").write_text(BARE)
        environment["PYTHONPATH"] = str(bare)
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")


def parts(folder: Path) -> dict:
    return json.loads((folder / "gpu_day.json").read_text())


DAY = pytest.mark.slow("every part of the day, in small")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("day")
    run = day("--dry-run", "--out", folder, bare=tmp_path_factory.mktemp("bare"))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder


@DAY
def test_every_part_runs_on_a_bare_machine(done):
    found = parts(done)
    assert {name: part["status"] for name, part in found.items()} == dict.fromkeys(found, "done")
    settle = ["environment", "build", "parity", "agreement", "capture", "memory", "reference"]
    assert list(found)[:8] == [*settle, "kernels"] and list(found)[-2:] == ["training", "distillation"]
    assert found["environment"]["ceilings"]["copy_gb_per_s"] > 0
    assert found["training"]["last"]["step"] == found["distillation"]["last"]["step"] == 2
    assert 0 < found["training"]["last"]["data_share"] <= 1
    assert found["kernels"]["rows"] and found["conv3d"]["rows"] and found["network"]["rows"]


@DAY
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


def test_the_first_parts_fit_one_call():
    import gpu_day

    assert sum(gpu_day.SETTLE.values()) <= gpu_day.BUDGET <= 540
    assert list(gpu_day.LIMITS) == [*gpu_day.SETTLE, *gpu_day.RACE, *gpu_day.TRAIN]


def test_a_budget_ends_the_day(tmp_path):
    run = day("--dry-run", "--out", tmp_path, "--only", "environment", "--budget", 0)
    assert run.returncode == 1 and "environment: no time left" in run.stdout
