"""The bundle readers in C++ and in Python accept and refuse the same configurations, and neither falls over."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from mrisr import bundle
from mrisr.errors import ModelError
from tests.fuzz.mutate import reshaped, some_bytes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "csrc" / "runtime" / f"{name}.cpp" for name in ("bundle", "json", "sha256")]
EXAMPLE = ROOT / "tests" / "export" / "config.json"
ROUNDS = int(os.environ.get("MRISR_FUZZ_ROUNDS", "1"))
CASES = 1500


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """fuzz_bundle, built with sanitizers."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        assert not os.environ.get("CI"), "no C++ compiler"
        pytest.skip("no C++ compiler (looked for CXX, c++, g++)")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz_bundle"
    words = [compiler, "-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    wheel = importlib.util.find_spec("nlohmann_json")
    words += [] if wheel is None else ["-isystem", str(Path(wheel.origin).parent / "include")]
    words += ["-D_GLIBCXX_ASSERTIONS", *(f"-I{ROOT / 'csrc' / part}" for part in ("include", "core", "runtime"))]
    subprocess.run([*words, *map(str, SOURCES), str(ROOT / "tests/runtime/fuzz_bundle.cpp"), "-o", program], check=True)
    return program


def judged(program: Path, cases: list[bytes]) -> list[str]:
    given = b"".join(len(case).to_bytes(8, "little") + case for case in cases)
    ended = subprocess.run([program, "judge"], input=given, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")[-3000:]
    return ended.stdout.decode(errors="replace").splitlines()


def in_python(case: bytes) -> str:
    try:
        bundle.check_config(case, "config.json")
    except ModelError as error:
        return str(error)
    return "ok"


def test_both_readers_give_the_same_verdict(reader):
    rng = random.Random(9)
    cases = [EXAMPLE.read_bytes()]
    cases += [(some_bytes, reshaped)[i % 2](cases[0], rng) for i in range(CASES * ROUNDS)]
    found = judged(reader, cases)
    assert len(found) == len(cases) and found[0] == "ok"
    differ = [(case, theirs, in_python(case)) for case, theirs in zip(cases, found)]
    differ = [d for d in differ if (d[1] == "ok") != (d[2] == "ok")]
    assert not differ, f"{len(differ)} of {len(cases)}: C++ {differ[0][1]!r}, Python {differ[0][2]!r}"


def test_nothing_upsets_the_reader_in_cpp(reader):
    ended = subprocess.run([reader, "mutate", EXAMPLE, str(3000 * ROUNDS), "2"], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")[-3000:]
