"""The contests of benchmarks/ops.py: all of them run, and what is wrong is not timed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mrisr.errors import BackendError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def contest(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contest

    return contest


def three(contest, ours, rival):
    x = torch.arange(4.0)
    return contest.Contest(
        "doubling", "4", {"native": lambda: ours * x}, {"eager": lambda: rival * x}, expected=2 * x.double()
    )


def test_a_wrong_rival_is_named_and_not_timed(contest):
    row = contest.hold(three(contest, 2, 3), "cpu", contest.Ceilings(1e9, 1e9), 0.0)
    assert set(row["seconds"]) == {"native"} and not row["failures"]
    assert "eager is off by 5.0e-01" in row["wrong_rivals"][0] and "not timed" in contest.line(row)


def test_where_ours_is_wrong_nobody_is_timed(contest):
    row = contest.hold(three(contest, 2.01, 2), "cpu", contest.Ceilings(1e9, 1e9), 0.0)
    assert row["seconds"] == {} and "native is off by" in row["failures"][0]
    assert "no speed" in contest.line(row)


def test_a_backend_of_ours_that_breaks_is_a_failure_and_one_that_cannot_run_is_absent(contest):
    def broken():
        raise RuntimeError("out of bounds")

    def unable():
        raise BackendError("no CUDA device")

    one = three(contest, 2, 2)
    one.ours["more"] = broken
    row = contest.hold(one, "cpu", contest.Ceilings(1e9, 1e9), 0.0)
    assert not row["seconds"] and "more raised RuntimeError: out of bounds" in row["failures"][0]
    one.ours["more"] = unable
    row = contest.hold(one, "cpu", contest.Ceilings(1e9, 1e9), 0.0)
    assert row["seconds"] and not row["failures"] and "no CUDA device" in row["absent"]["more"]


def test_nan_and_shape_are_errors_without_end(contest):
    one = three(contest, 2, 2)
    assert contest.error_of(one, torch.tensor([0.0, 2.0, torch.nan, 6.0])) == float("inf")
    assert contest.error_of(one, torch.zeros(3)) == float("inf")
    assert contest.error_of(one, torch.full_like(one.expected, torch.inf)) == float("inf")
    endless = replace(one, expected=torch.tensor([torch.inf, 2.0, 4.0, 6.0], dtype=torch.float64))
    assert contest.error_of(endless, torch.tensor([torch.inf, 2.0, 4.0, 9.0])) == 0.5
    assert contest.error_of(endless, torch.tensor([-torch.inf, 2.0, 4.0, 6.0])) == float("inf")


@pytest.mark.slow("every contest, in a process of its own; what a contest is made of is in `make test`")
def test_every_contest_runs_by_pytest_benchmark(tmp_path):
    """One process: each case compared with float64, three rounds at sizes of nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(BENCHMARKS), "--benchmark-disable"]
    command += [f"--benchmark-storage=file://{tmp_path}"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
