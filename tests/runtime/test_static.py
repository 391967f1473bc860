"""The static library: built, installed, linked by a C program through find_package and pkg-config, and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.ctest import missing, tool

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
#include <mrisr.h>
#include <stdio.h>
int main(void) {
  mrisr_model* model = NULL;
  if (mrisr_open("/no/such/bundle", NULL, &model) != MRISR_ERROR_MODEL) return 1;
  printf("%s | %s\\n", mrisr_build_info(), mrisr_last_error());
  return 0;
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.24)
project(static_mrisr LANGUAGES C CXX)
find_package(mrisr 0.1 REQUIRED)
add_executable(program program.c)
target_link_libraries(program PRIVATE mrisr::mrisr)
"""


def run(*command) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow("compiles libmrisr once more, statically")
def test_a_program_links_the_static_library(tmp_path):
    cmake, prefix = tool("cmake"), tmp_path / "installed"
    common = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}")
    options = ("-DBUILD_SHARED_LIBS=OFF", "-DMRISR_OPENVINO=OFF", "-DCMAKE_INSTALL_LIBDIR=lib")
    run(cmake, "-S", ROOT, "-B", tmp_path / "a", *common, *options, f"-DPython_EXECUTABLE={sys.executable}")
    run(cmake, "--build", tmp_path / "a")
    run(cmake, "--install", tmp_path / "a", "--prefix", prefix)
    assert (prefix / "lib/libmrisr.a").exists() and not list((prefix / "lib").glob("*.so*"))
    (tmp_path / "program.c").write_text(PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    run(cmake, "-S", tmp_path, "-B", tmp_path / "b", *common, f"-DCMAKE_PREFIX_PATH={prefix}")
    run(cmake, "--build", tmp_path / "b")
    said = run(tmp_path / "b/program")
    assert "built-in engine: none" in said and "/no/such/bundle: there is no such folder" in said
    if shutil.which("pkg-config") and shutil.which("c++"):
        where = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "mrisr"], env=where, capture_output=True, text=True)
        run("cc", tmp_path / "program.c", "-o", tmp_path / "by_hand", *flags.stdout.split())
        assert run(tmp_path / "by_hand") == said
