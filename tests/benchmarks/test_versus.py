"""`mrisr bench --stages`, `--compare` and `--op`: this commit and another, each with its own mrisr, in turns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mrisr.cli import bench
from mrisr.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import one_op
    import stages
    import versus

    return SimpleNamespace(one_op=one_op, stages=stages, versus=versus)


@pytest.fixture
def asked(monkeypatch):
    """The words that `mrisr bench` runs."""
    found = []

    def run(words, check):
        found.append([Path(words[1]).name, *words[2:]])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    return found


def test_options_name_their_script(asked):
    assert main(["bench", "--stages", "--record"]) == 0
    assert main(["bench", "--compare", "HEAD~3"]) == 0
    assert main(["bench", "--op", "noise", "--shape", "8,8,8", "--base", "HEAD", "--", "--quick"]) == 0
    assert asked == [
        ["stages.py", "--record"],
        ["stages.py", "--compare", "HEAD~3"],
        ["one_op.py", "--op", "noise", "--shape", "8,8,8", "--base", "HEAD", "--quick"],
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--op", "noise"], "--op needs --shape"),
        (["--base", "HEAD"], "--base belong to --op"),
        (["--op", "noise", "--shape", "8,8,8", "--compare", "HEAD"], "--op and --compare are different things"),
        (["--stages", "--script", "ops"], "--script and --stages are different things"),
    ],
)
def test_what_contradicts_itself_is_one_line(words, said, asked, capsys):
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err and not asked


@pytest.mark.slow("two processes load PyTorch; contests and turns by themselves are in `make test`")
def test_an_operator_is_measured_beside_another_commit(tmp_path):
    """Each process imports its own commit's mrisr (or ends), and is compared with float64 before it is timed."""
    words = ["--op", "rms_norm", "--shape", "1,16,4,5,6", "--dtype", "bfloat16", "--base", "HEAD", "--rounds", "1"]
    command = [sys.executable, str(BENCHMARKS / "one_op.py"), *words, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout[:12]
    lines = done.stdout.splitlines()
    assert (
        lines[0].startswith("this checkout") and lines[2].startswith(head) and lines[4].endswith(f"as fast as {head}")
    )
    assert "of the floor" in lines[0] and "GB/s" in lines[1] and "GFLOP/s" in lines[1]


def test_every_operator_has_a_contest(scripts):
    """The operator agrees with float64 at a size of nothing, and a shape of another length is refused."""
    import torch

    assert set(scripts.one_op.MEANING) == set(scripts.one_op.BUILD)
    for op, meaning in scripts.one_op.MEANING.items():
        shape = {"N,C,D,H,W": (1, 16, 4, 5, 6), "D,H,W": (20, 21, 22)}.get(meaning, (1, 8, 8, 9, 192))
        one = scripts.one_op.contest_of(op, shape, torch.float32, "cpu")
        row = scripts.one_op.hold(one, "cpu", scripts.one_op.Ceilings(1e9, 1e9), 0.0)
        assert "best" in row, (op, row["failures"], row["absent"])
        assert one.bytes_moved > 0


def test_a_process_with_another_mrisr_ends(scripts, tmp_path):
    with pytest.raises(SystemExit, match="expected mrisr from .*, found it in"):
        scripts.versus.own(str(tmp_path))
    with pytest.raises(SystemExit, match="'no-such-thing' is no commit"):
        scripts.versus.commit_of("no-such-thing")


def test_turns_alternate(scripts):
    order = []
    found = scripts.versus.in_turns({"a": Path("a"), "b": Path("b")}, lambda root: order.append(root.name) or {}, 2)
    assert order == ["a", "b", "a", "b"] and {name: len(runs) for name, runs in found.items()} == {"a": 2, "b": 2}


def test_the_innermost_stage_counts(scripts, monkeypatch):
    clock = SimpleNamespace(wall=100.0, cpu=0.0)
    clocks = SimpleNamespace(perf_counter=lambda: clock.wall, process_time=lambda: clock.cpu)
    monkeypatch.setattr(scripts.stages, "time", clocks)

    def work(wall: float, cpu: float) -> None:
        clock.wall, clock.cpu = clock.wall + wall, clock.cpu + cpu

    watch = scripts.stages.Stopwatch()
    with watch.stage("read"):
        work(2.0, 1.0)
        with watch.stage("import"):
            work(5.0, 0.5)
    work(1.0, 1.0)
    results = watch.results()
    assert {name: (stage["wall_s"], stage["cpu_s"]) for name, stage in results.items()} == {
        "rest": (1.0, 1.0),
        "read": (2.0, 1.0),
        "import": (5.0, 0.5),
    }


@pytest.mark.slow("a cold and a warm process upscale a scan; the stopwatch by itself is in `make test`")
def test_the_reference_job_is_told_stage_by_stage(tmp_path):
    """Two processes, cold and warm: every stage is there, and the second converts nothing."""
    words = ["--shape", "24", "24", "24", "--ways", "command", "--rounds", "1", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "stages.py"), *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "stages.json").read_text())
    cold, warm = content["rows"]
    for row in (cold, warm):
        assert {"import", "read", "scale", "start", "network", "consistency", "write"} <= set(row["stages"])
        assert row["all"]["cpu_s"] >= row["stages"]["import"]["cpu_s"] > 0
    assert warm["all"]["cpu_s"] < cold["all"]["cpu_s"], "the graph and the verdict on bfloat16 are found again"
    assert "features" in content["machine"] and "load" in content["machine"]
    assert "| network |" in done.stdout
