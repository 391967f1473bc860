"""Build the native core with its C++ tests and run them by ctest.

    python tests/native/ctest.py [--sanitize address,undefined | thread]

Each kind has a folder of its own under build/, so that a second run builds only what has changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}


def tool(name: str) -> str | None:
    """The environment's own tool first: its version is the one that pyproject.toml asks for."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def missing() -> str | None:
    """Why the C++ tests cannot be built here; None where they can."""
    compilers = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers if name):
        return "no C++ compiler (looked for CXX, c++, g++, clang++)"
    absent = [name for name in ("cmake", "ninja", "ctest") if tool(name) is None]
    return f"{', '.join(absent)} not found: pip install cmake ninja" if absent else None


def build(sanitize: str = "") -> Path:
    """Configure and build; returns the build folder. Raises CalledProcessError with the compiler's output shown."""
    tree = ROOT / "build" / ("ctest" + "".join(f"-{name}" for name in sanitize.split(",") if name))
    options = {
        "MRISR_TESTS": "ON",
        "MRISR_SANITIZE": sanitize,
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
    }
    defines = [f"-D{key}={value}" for key, value in options.items()]
    quiet = [tool("cmake"), "--log-level=WARNING", "-S", str(ROOT), "-B", str(tree), "-G", "Ninja"]
    subprocess.run([*quiet, *defines], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([tool("cmake"), "--build", str(tree)], check=True)
    return tree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", default="", help="as -fsanitize=, for example address,undefined")
    options = parser.parse_args()
    if missing():
        print(f"ctest: {missing()}", file=sys.stderr)
        return 1
    tree = build(options.sanitize)
    command = [tool("ctest"), "--test-dir", str(tree), "--output-on-failure", "--no-tests=error"]
    return subprocess.run(command, env={**OPTIONS, **os.environ}).returncode


if __name__ == "__main__":
    sys.exit(main())
