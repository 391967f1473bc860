"""What was skipped in a run of .ci/run, and why; exits with 1 where what was missing could have been had.

    python .ci/skips.py LOG...

Reads pytest's lines `SKIPPED [3] tests/a.py:12: the reason`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"^SKIPPED \[(\d+)\] (.+?\.py)(?::\d+)?: (.*)$", re.MULTILINE)


def command(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") for name in names)


def folder(variable: str, name: str) -> Callable[[], bool]:
    return lambda: Path(os.environ.get(variable, ROOT.parent / name)).is_dir()


# A word of the reason -> whether this machine has what it says is missing.
PROBES: dict[str, Callable[[], bool]] = {
    r"orthanc|storescu": command("Orthanc", "storescu"),
    r"cuda device|nvidia|no gpu": Path("/dev/nvidia0").exists,
    r"make runtime": lambda: False,  # a part of its own in .ci/run
    r"tensorrt": lambda: False,  # the same
    r"interpreter: tests": lambda: False,  # run by the file that it names
    r"compiler|\bg\+\+": command("c++"),
    r"pkg-config": command("pkg-config", "cc"),
    r"setpriv": command("setpriv"),
    r"MRISR_DICOM_DATA": folder("MRISR_DICOM_DATA", "shared/data/dicom"),
    r"MRISR_SHARED|beside (this|the) checkout": folder("MRISR_SHARED", "shared"),
    r"weights are shipped": lambda: any((ROOT / "mrisr" / "weights").glob("*.safetensors")),
    r"bfloat16 cannot run": lambda: bool(re.search(r"amx_bf16|avx512_bf16", _cpu())),
    r"this processor has bfloat16": lambda: not re.search(r"amx_bf16|avx512_bf16", _cpu()),
}
# Else the packages that it names: "needs pybids", "could not import 'onnx'", "extra dicom (pydicom) is not installed".
NAMED = [
    re.compile(r"(?:needs|could not import) '?(\w+)", re.IGNORECASE),
    re.compile(r"(\w+)\)? is not installed"),
    re.compile(r"(\w+) \([\w ]+\) is not installed"),
]


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def could_be_had(reason: str) -> str:
    """What this machine has although `reason` says that it lacks it; empty where it has not."""
    for words, probe in PROBES.items():
        if re.search(words, reason, re.IGNORECASE):
            return words if probe() else ""
    for name in (name for pattern in NAMED for name in pattern.findall(reason)):
        if importlib.util.find_spec(name) is not None:
            return f"the package {name}"
    return ""


def main(logs: list[str]) -> int:
    counts: Counter[tuple[str, str]] = Counter()
    for log in logs:
        for number, file, reason in LINE.findall(Path(log).read_text(encoding="utf-8", errors="replace")):
            counts[reason.removeprefix("Skipped: "), file] += int(number)
    print(f"{sum(counts.values())} skipped")
    faults = []
    for (reason, file), number in sorted(counts.items()):
        had = could_be_had(reason)
        print(f"  {number:4}  {file}: {reason}")
        if had:
            faults.append(f"{file}: skipped ({reason}), yet this machine has it: {had}")
    print("\n".join(f"FAIL {fault}" for fault in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
