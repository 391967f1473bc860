"""What CMake builds at the top level: libmrisr where nothing else is asked for, and not where setup.py drives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.ctest import missing, tool

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
ROOT = Path(__file__).resolve().parents[2]


def targets(tree: Path, *options: str) -> str:
    """What `ninja help` lists, and what `cmake --install` would do."""
    words = [tool("cmake"), "-S", str(ROOT), "-B", str(tree), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    words.append(f"-DPython_EXECUTABLE={sys.executable}")  # whose nlohmann-json is taken where the system has none
    done = subprocess.run([*words, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([tool("ninja"), "-C", str(tree), "-t", "targets", "all"], capture_output=True, text=True)
    scripts = "\n".join(path.read_text() for path in tree.rglob("cmake_install.cmake"))
    return listed.stdout + scripts


def test_libmrisr_is_what_a_builder_gets(tmp_path):
    found = targets(tmp_path / "a", "-DMRISR_OPENVINO=OFF")
    assert "libmrisr.so" in found and "all: phony" in found
    assert "mrisr.h" in found and "mrisrConfig.cmake" in found and "mrisr.pc" in found


def test_not_where_the_core_is_tested_alone_or_it_is_switched_off(tmp_path):
    assert "libmrisr.so" not in targets(tmp_path / "a", "-DMRISR_RUNTIME=OFF")
