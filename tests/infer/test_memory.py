"""Budgets: read, modelled, kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrisr.errors import MemoryBudgetError, UsageError
from mrisr.infer import cgroup, memory

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("512MB", 512 * 10**6),
        ("1.5 gb", 15 * 10**8),
        ("1GiB", 2**30),
        ("1000", 1000),
        (4096, 4096),
    ],
)
def test_sizes_are_read(text, size):
    assert memory.parse_budget(text) == size


WRONG = ["", "much", "2 GBs", "-1GB", 0, -5, True, float("nan"), float("inf"), "0MB", [1], "9" * 400 + "GB", 10**400]


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_wrong_sizes_are_refused(text):
    with pytest.raises(UsageError, match="memory: expected"):
        memory.parse_budget(text)


@pytest.mark.parametrize("size", [1, 999_999_999, 10**9, 1_234_567_890, 7 * 10**9 + 1])
def test_shown_sizes_read_back_and_round_up(size):
    assert memory.parse_budget(memory.show(max(size, 10**6), up=True)) >= size


def test_the_process_and_the_machine_are_measured():
    assert 10**7 < memory.resident() < 10**12
    assert 10**7 < memory.available() < 10**15
    assert memory.resident() <= memory.default_budget(torch.device("cpu")) < memory.resident() + memory.available()


def test_the_default_budget_is_shared_by_the_workers(monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 10**9)
    monkeypatch.setattr(memory, "available", lambda: 20 * 10**9)
    cpu = torch.device("cpu")
    monkeypatch.delenv("MRISR_WORKERS", raising=False)
    assert memory.default_budget(cpu) == 13 * 10**9
    monkeypatch.setenv("MRISR_WORKERS", "4")
    assert memory.default_budget(cpu) == 4 * 10**9
    for wrong in ("0", "-1", "two", "1.5", "\u0663"):
        monkeypatch.setenv("MRISR_WORKERS", wrong)
        with pytest.raises(UsageError, match="MRISR_WORKERS: expected a whole number of at least 1"):
            memory.default_budget(cpu)


def tree(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return root


V2 = "31 23 0:28 {part} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {part} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
SLURM = "slurm/uid_7/job_42"


def group(root, folder, names, limit, used, droppable=None):
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / names[0]).write_text(f"{limit}\n")
    (place / names[1]).write_text(f"{used}\n")
    if droppable is not None:
        (place / "memory.stat").write_text(f"anon 5\n{names[2]} {droppable}\n")


@pytest.mark.parametrize(
    ("mount", "entry", "folder", "kind"),
    [
        (V2, f"0::/{SLURM}/step_0\n", "sys/fs/cgroup", "cgroup2"),
        (V1, f"9:cpu:/\n4:memory:/{SLURM}/step_0\n0::/\n", "sys/fs/cgroup/memory", "cgroup"),
    ],
    ids=["version 2", "version 1"],
)
def test_the_limit_is_that_of_the_process_s_own_group(tmp_path, mount, entry, folder, kind):
    """A SLURM job's, not only the root's; every group around it counts; droppable pages of files are free."""
    names = cgroup.FILES[kind]
    unlimited = "max" if kind == "cgroup2" else 9223372036854771712
    root = tree(tmp_path, proc__self__cgroup=entry, proc__self__mountinfo=mount.format(part="/"))
    group(root, folder, names, unlimited, 10**9)
    assert cgroup.free(root) in (None, 9223372036854771712 - 10**9)
    group(root, f"{folder}/{SLURM}/step_0", names, unlimited, 3 * 10**9)
    group(root, f"{folder}/{SLURM}", names, 8 * 10**9, 3 * 10**9, droppable=10**9)
    assert cgroup.free(root) == 6 * 10**9
    group(root, f"{folder}/{SLURM}/step_0", names, 4 * 10**9, 3 * 10**9)
    assert cgroup.free(root) == 10**9
    group(root, f"{folder}/{SLURM}/step_0", names, 2 * 10**9, 3 * 10**9)
    assert cgroup.free(root) == 0


def test_in_a_container_the_mount_is_a_part_of_the_tree(tmp_path):
    """What is mounted is the container's own group; the path in /proc may still be the host's, or beyond the mount."""
    names = cgroup.FILES["cgroup"]
    for path, part in (
        ("/docker/a1", "/docker/a1"),
        ("/docker/a1/b", "/docker/a1"),
        ("/../..", "/"),
        ("/else", "/docker"),
    ):
        root = tree(tmp_path / part.strip("/").replace("/", "-") / path.strip("/").replace("/", "-"))
        tree(root, proc__self__cgroup=f"4:memory:{path}\n", proc__self__mountinfo=V1.format(part=part))
        group(root, "sys/fs/cgroup/memory", names, 5 * 10**9, 2 * 10**9)
        assert cgroup.free(root) == 3 * 10**9


def test_where_there_are_no_groups(tmp_path):
    assert cgroup.free(tmp_path) is None
    assert cgroup.free(tree(tmp_path, proc__self__cgroup="nonsense\n", proc__self__mountinfo="also - not\n")) is None


def test_the_peak_of_a_process_is_its_own_not_its_parents():
    """A small process that a large one starts: getrusage would report the large one."""
    code = """
import subprocess, sys
held = b"x" * 10**9
child = "from mrisr.infer import memory; print(memory.peak_resident())"
print(subprocess.check_output([sys.executable, "-c", child], text=True))
from mrisr.infer import cgroup, memory
print(memory.peak_resident())
"""
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    child, parent = (int(line) for line in found.split())
    assert parent >= 10**9
    assert child < 10**9


def need(**changes):
    given = {
        "resident_bytes": 300 * 10**6,
        "source_voxels": 10**6,
        "target_voxels": 10**7,
        "width": 32,
        "weight_bytes": 10**7,
    }
    return memory.demand(memory.COSTS["openvino"], **{**given, **changes})


def test_more_of_anything_costs_more():
    base = need().peak(10**6)
    for changes in (
        {"resident_bytes": 10**9},
        {"target_voxels": 2 * 10**7},
        {"frames": 5},
        {"samples": 3},
        {"steps": 2},
        {"ensemble": 8},
        {"width": 64},
    ):
        assert need(**changes).peak(10**6) > base, changes
    assert need().tile_voxels(need().peak(10**6) + 1000) == pytest.approx(10**6, abs=100)


def test_a_refusal_names_a_budget_that_works():
    least = need().peak(10**5)
    with pytest.raises(MemoryBudgetError, match=r"budget of 100MB .* smallest that works is (\S+) ") as caught:
        memory.refuse(10**8, need(), 10**5, "smallest tile")
    named = memory.parse_budget(str(caught.value).split("works is ")[1].split()[0])
    assert least <= named < 1.1 * least + 10**8


JOB = """
import json
import numpy as np, torch
import mrisr
from mrisr.diffusion.precond import Denoiser
from mrisr.infer import cgroup, memory
from mrisr.nn.presets import build
from mrisr.weights.registry import LoadedModel

net = build("student").eval()
torch.nn.init.normal_(net.exit.weight, std=0.05)
model = LoadedModel(Denoiser(net, 0.5), "random", {{}}, "", None)
rng = np.random.default_rng(0)
scan = 0.01 * rng.random((160, 160, 160), dtype=np.float32)
blocks = np.kron(rng.random((12, 12, 12)), np.ones((10, 10, 10)))
scan[20:140, 20:140, 20:140] += blocks.astype(np.float32)
out, info = mrisr.upscale(scan, input_voxel_size=1.0, voxel_size=0.7, model=model, memory={budget!r},
                          threads=2, consistency="on", return_info=True)
print(json.dumps({{"peak": memory.peak_resident(), "corrected": info.consistency[0].applied}}))
"""


@pytest.mark.slow("whole heads: what they take is what is promised")
@pytest.mark.parametrize("budget", ["1.5GB", "2GB"])
def test_a_stated_budget_is_kept(budget):
    code = JOB.format(budget=budget)
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["corrected"]
    assert result["peak"] <= memory.parse_budget(budget), result
