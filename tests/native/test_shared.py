"""Numbers that Python and libmrisr share are written once: in Python, or in a bundle's config.json."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

RUNTIME = Path(__file__).resolve().parents[2] / "csrc" / "runtime"
# Constants of libmrisr alone: limits of the C API, of its JSON reader, and how its loops are cut.
ITS_OWN = {
    "kTextBytes", "kVersion", "kLargestConfig", "kLargestFile", "kConfig", "kModel", "kCard", "kWeights", "kMostSweeps",
    "kGrain", "kPi", "kMostVoxels", "kLongestAxis", "kBits", "kPlaces", "kDepth", "kValues", "kNames",
    "kMostSourceVoxels",
    "kMostThreads", "kMostSteps", "kMostSamples", "kMostCuts", "kKinds", "kAlign", "kRead", "kStarted", "kDenoised",
    "kRound",  # of SHA-256
    "kLowest", "kHighest",  # of int16
    # of ONNX Runtime, which is libmrisr's engine and not Python's: its names, memory and binary interface
    "kUsualName", "kNoEvents", "kCpuFixed", "kCpuMaps", "kApiVersion", "kFatal", "kFloat", "kDeviceAllocator",
    "kDefaultMemory",
}  # fmt: skip


def test_the_header_is_what_python_has():
    spec = importlib.util.spec_from_file_location("shared", RUNTIME / "shared.py")
    shared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)
    assert (RUNTIME / "shared.h").read_text() == shared.text(), "run python csrc/runtime/shared.py"
    assert sum(map(len, shared.numbers().values())) > 20
    sources = "".join(p.read_text() for p in RUNTIME.glob("*.[ch]*"))
    unused = [name for values in shared.numbers().values() for name in values if f"shared::{name}" not in sources]
    assert not unused, f"shared.h has numbers that libmrisr does not use: {unused}"


def test_no_other_constant_is_written_in_libmrisr():
    """A new constant of csrc/runtime comes from Python (shared.py, or config.json), or is named above as its own."""
    stray = []
    for path in [*RUNTIME.glob("*.cpp"), *RUNTIME.glob("*.h")]:
        if path.name == "shared.h":
            continue
        for statement in re.findall(r"constexpr\s[^;{(]*?(?=[;{(])", path.read_text()):
            for name in re.findall(r"\b(k[A-Z]\w*)\b(?=\s*(?:=|\[|$|,))", statement):
                if name not in ITS_OWN and f"shared::{name}" not in path.read_text():
                    stray.append(f"{path.name}: {name}")
    assert not stray, stray
