"""Triton kernels on a machine without a GPU: values by the interpreter, machine code by the compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.cases import SPECS

TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def by_the_interpreter(which: str) -> set[tuple[str, str]]:
    """What tests/native/interpreted.py has found to agree: ("values" or "gradients", family)."""
    command = [sys.executable, str(TESTS / "native" / "interpreted.py"), which]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    cases = [line.split() for line in run.stdout.splitlines()]
    assert cases and all(case[4] == "passed" for case in cases)
    return {(what, name) for what, name, *_ in cases}


def families(wanted=lambda spec: True) -> set[str]:
    return {n for n, spec in SPECS.items() if "triton" in [b.name for b in spec.family.backends] and wanted(spec)}


def test_parity_by_the_interpreter():
    """Values and gradients of every family with a Triton backend, in float32, every branch of every kernel."""
    agree = by_the_interpreter("small")
    assert {name for what, name in agree if what == "values"} == families()
    assert {name for what, name in agree if what == "gradients"} == families(lambda spec: spec.gradients)


@pytest.mark.slow("the larger cases of the same kernels, interpreted")
def test_parity_of_large_cases_by_the_interpreter():
    agree = by_the_interpreter("large")
    assert {("values", "attention3d"), ("gradients", "attention3d"), ("gradients", "group_norm")} <= agree


@pytest.mark.slow("the same kernels on two more types, interpreted")
def test_parity_of_half_precision_by_the_interpreter():
    agree = by_the_interpreter("half")
    assert agree == {("values", name) for name in families(lambda spec: torch.bfloat16 in spec.tolerance)}


@pytest.mark.slow("compiles every kernel; `make compile-only` does so for all architectures")
def test_machine_code_for_hopper():
    """One architecture here; tests/native/compile_only.py does all three, and the CUDA files."""
    command = [sys.executable, str(TESTS / "native" / "compile_only.py"), "--triton", "--arch", "90"]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("ok   triton") >= 19
