"""Triton kernels on a machine without a GPU: values by the interpreter, machine code by the compiler."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.cases import SPECS

TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def by_the_interpreter(which: str) -> str:
    """What pytest says of the parity tests that `which` selects, in a process of its own: Triton reads
    TRITON_INTERPRET when a kernel is defined."""
    command = [sys.executable, "-m", "pytest", "-v", "-k", f"triton and {which}", str(TESTS / "ops" / "test_parity.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "no CUDA" not in run.stdout
    return run.stdout


def families() -> set[str]:
    return {name for name, spec in SPECS.items() if "triton" in [b.name for b in spec.family.backends]}


def test_parity_by_the_interpreter():
    """Values and gradients of every family with a Triton backend, in float32."""
    said = by_the_interpreter("not float16")  # nor bfloat16
    ran = set(re.findall(r"test_values\[(\w+)-triton-float32-[\w-]+\] PASSED", said))
    assert ran == families(), f"Triton ran in {sorted(ran)} only"
    differentiated = set(re.findall(r"test_gradients\[(\w+)-triton-\w+\] PASSED", said))
    assert differentiated == {name for name in families() if SPECS[name].gradients}


@pytest.mark.slow("the same kernels on two more types, interpreted")
def test_parity_of_half_precision_by_the_interpreter():
    ran = set(re.findall(r"test_values\[(\w+)-triton-bfloat16-[\w-]+\] PASSED", by_the_interpreter("float16")))
    assert ran == {name for name in families() if torch.bfloat16 in SPECS[name].tolerance}


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
