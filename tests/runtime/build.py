"""Build libmrisr and its C++ tests, run them by ctest; then install it and build the examples from the installed tree.

    python tests/runtime/build.py [--sanitize address,undefined | thread]

With sanitizers: without OpenVINO, whose own code is not ours to check, and nothing is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "native"))
import ctest  # noqa: E402 - beside, not in a package

TREE = ROOT / "build" / "runtime"
INSTALLED, EXAMPLES = TREE / "installed", TREE / "examples"
LIBRARY = INSTALLED / "lib" / "libmrisr.so"


def cmake(*arguments: str | Path) -> None:
    """Quiet unless it fails."""
    command = [ctest.tool("cmake"), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}")


def configure(source: Path, tree: Path, **options: str) -> None:
    options = {"CMAKE_MAKE_PROGRAM": ctest.tool("ninja"), **options}
    cmake("-S", source, "-B", tree, "-G", "Ninja", *(f"-D{key}={value}" for key, value in options.items()))


def openvino() -> dict[str, str]:
    """Where the CMake configuration of this environment's OpenVINO lies."""
    found = importlib.util.find_spec("openvino")
    return {} if found is None else {"OpenVINO_DIR": str(Path(found.origin).parent / "cmake")}


def build(sanitize: str = "") -> Path:
    tree = TREE if not sanitize else TREE.with_name("runtime-" + sanitize.replace(",", "-"))
    engine = {"MRISR_OPENVINO": "OFF"} if sanitize else openvino()
    engine["MRISR_BUNDLE_OPENVINO"] = "OFF"  # the same tree builds the kit
    engine["Python_EXECUTABLE"] = sys.executable  # whose nlohmann-json is taken where the system has none
    configure(ROOT, tree, MRISR_RUNTIME_TESTS="ON", MRISR_SANITIZE=sanitize, **engine)
    cmake("--build", tree)
    return tree


def install() -> None:
    """Into `INSTALLED` with lib as its library folder, whatever the system's habit; then the examples from there."""
    configure(ROOT, TREE, CMAKE_INSTALL_LIBDIR="lib")
    cmake("--build", TREE)
    cmake("--install", TREE, "--prefix", INSTALLED)
    configure(ROOT / "examples" / "embed", EXAMPLES, CMAKE_PREFIX_PATH=str(INSTALLED))
    cmake("--build", EXAMPLES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", default="", help="as -fsanitize=, for example address,undefined")
    options = parser.parse_args()
    if ctest.missing():
        print(f"runtime: {ctest.missing()}", file=sys.stderr)
        return 1
    tree = build(options.sanitize)
    command = [ctest.tool("ctest"), "--test-dir", str(tree), "--output-on-failure", "--no-tests=error"]
    failed = subprocess.run(command, env={**ctest.OPTIONS, **os.environ}).returncode
    if failed or options.sanitize:
        return failed
    install()
    print(LIBRARY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
