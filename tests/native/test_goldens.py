"""The native core from C++ alone: ctest over goldens written from the SPECs, guard pages around every buffer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"native_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


goldens, ctest = load("goldens"), load("ctest")
needs_compiler = pytest.mark.skipif(ctest.missing() is not None, reason=str(ctest.missing()))

BUILDS = pytest.mark.slow("builds the core with its C++ tests; `make sanitize` runs them too")


def test_every_native_family_has_a_runner():
    runners = {path.stem.removeprefix("golden_") for path in HERE.glob("golden_*.cpp")}
    assert runners == set(goldens.families()), "write or remove tests/native/golden_FAMILY.cpp"


@pytest.fixture(scope="module")
def built() -> Path:
    run = subprocess.run([sys.executable, str(HERE / "ctest.py")], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert "100% tests passed" in run.stdout
    return ctest.build() / "tests" / "native"


@needs_compiler
@BUILDS
def test_the_core_passes(built):
    assert {path.stem for path in (built / "golden_files").glob("*.golden")} == set(goldens.families())


@needs_compiler
@BUILDS
def test_a_wrong_value_fails(built, tmp_path):
    """What the programs say is no formality: one expected value is changed in its last place but three."""
    whole = bytearray((built / "golden_files" / "noise.golden").read_bytes())
    first = whole.index(b"expected") + len(b"expected") + 1 + 4 + 6 * 8 + 8  # kind, rank, size and stride, bytes
    whole[first + 5] ^= 0x10
    (tmp_path / "noise.golden").write_bytes(whole)
    run = subprocess.run([built / "goldens", tmp_path], capture_output=True, text=True)
    assert run.returncode == 1 and "FAIL noise whole: expected is off by" in run.stdout


@needs_compiler
@BUILDS
def test_a_family_without_a_runner_fails(built, tmp_path):
    (tmp_path / "unheard_of.golden").write_bytes((built / "golden_files" / "noise.golden").read_bytes())
    run = subprocess.run([built / "goldens", tmp_path], capture_output=True, text=True)
    assert run.returncode == 1 and "no runner; write tests/native/golden_unheard_of.cpp" in run.stdout
