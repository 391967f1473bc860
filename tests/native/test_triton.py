"""Triton kernels on a machine without a GPU: values by the interpreter, machine code by the compiler."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_parity_by_the_interpreter():
    """Values and gradients of every family with a Triton backend, in a process of its own: Triton reads
    TRITON_INTERPRET when a kernel is defined."""
    from tests.ops.cases import SPECS

    families = {name for name, spec in SPECS.items() if "triton" in [b.name for b in spec.family.backends]}
    command = [sys.executable, "-m", "pytest", "-v", "-k", "triton", str(TESTS / "ops" / "test_parity.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    ran = set(re.findall(r"test_values\[(\w+)-triton-[\w-]+\] PASSED", run.stdout))
    assert ran == families, f"Triton ran in {sorted(ran)} only"
    differentiated = set(re.findall(r"test_gradients\[(\w+)-triton-\w+\] PASSED", run.stdout))
    assert differentiated == {name for name in families if SPECS[name].gradients}
    assert "no CUDA" not in run.stdout


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
