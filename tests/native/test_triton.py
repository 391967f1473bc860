"""Triton kernels on a machine without a GPU: values by the interpreter, machine code by the compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_values_by_the_interpreter():
    """In a process of its own: Triton reads TRITON_INTERPRET when a kernel is defined."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-k",
            "test_values and triton",
            str(TESTS / "ops" / "test_parity.py"),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout and "cannot run: no CUDA" not in run.stdout, run.stdout[-3000:]


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
