"""Where something ran (processor, versions, commit), and every environment variable that mrisr reads.

For `mrisr doctor`, result files and the record of a run. `docs/environment.md` is written from `VARIABLES`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mrisr import __version__
from mrisr.errors import MrisrWarning

# What the drivers of GPUs that PyTorch knows make: NVIDIA's, in WSL, and AMD's; and what a program loads of NVIDIA's.
GPU_NODES, GPU_DRIVER = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd"), "libcuda.so.1"
# Of /proc/cpuinfo, in words. (Arm states bf16; the engines there were never measured.)
BFLOAT16 = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16"}
LIBRARIES = ("torch", "triton", "openvino", "numpy", "scipy", "nibabel")


@dataclass(frozen=True)
class Variable:
    """An environment variable that mrisr reads.

    Attributes:
        name: of the variable.
        when: "run" (Python and the commands), "libmrisr", "build", or "test" (also benchmarks).
        meaning: what it does, in one sentence.
        default: what holds where it is not set.
    """

    name: str
    when: str
    meaning: str
    default: str


VARIABLES = (
    Variable(
        "MRISR_CACHE",
        "run",
        "Folder of converted graphs and of what is known of their models, which save seconds at each start; `off` "
        "keeps nothing. Nothing else is written beside the outputs, and a folder that cannot be used is no error.",
        "`$XDG_CACHE_HOME/mrisr`, else `~/.cache/mrisr`",
    ),
    Variable("XDG_CACHE_HOME", "run", "Parent of the cache, where MRISR_CACHE is not set.", "`~/.cache`"),
    Variable(
        "MRISR_BACKEND",
        "run",
        "Backend of the operators: one for all (`native`) or by family (`noise=reference,blend=native`). One that "
        "cannot run is an error, never replaced.",
        "the first that can run",
    ),
    Variable(
        "MRISR_PRECISION",
        "run",
        'What `precision="auto"` stands for: `float32` gives the same picture on every processor, `bfloat16` is an '
        "error where it cannot be had.",
        "`auto`: bfloat16 where the processor has it and a fixed tile agrees",
    ),
    Variable(
        "MRISR_WORKERS",
        "run, libmrisr",
        "How many processes share the machine's memory, of which this is one: the default budget is that part of 60 % "
        "of what is free. Whoever starts several workers sets it.",
        "`1`",
    ),
    Variable(
        "OMP_NUM_THREADS",
        "run",
        "CPU threads where neither `threads=` nor `--threads` says how many (of a list, `4,2`, the first number). What "
        "is no whole number of at least 1 is warned about and not used. libmrisr does not read it: "
        "`mrisr_options.threads` does.",
        "every core that the process may use",
    ),
    Variable(
        "CUDA_VISIBLE_DEVICES",
        "run",
        "Which GPUs there are, as CUDA reads it; `--cluster local` gives each of its workers one of them.",
        "every GPU",
    ),
    Variable(
        "MRISR_ISA",
        "run, libmrisr",
        "Instruction set of the native core: `base`, `v3` (AVX2) or `v4` (AVX-512). Never more than the processor has.",
        "the processor's best",
    ),
    Variable(
        "TMPDIR",
        "run",
        'Folder of the scratch file where `tile="exact"` does not fit the memory budget. Nothing stays there.',
        "the system's temporary folder",
    ),
    Variable(
        "TRITON_INTERPRET",
        "run",
        "`1` runs Triton kernels in Triton's interpreter, on the CPU, for tests.",
        "compiled, on a GPU",
    ),
    Variable(
        "MRISR_NATIVE",
        "build",
        "`1`: the native core is built, or the build fails; `0`: pure Python; `auto`: built where that works.",
        "`auto`",
    ),
    Variable("MRISR_CUDA", "build", "The same for the CUDA kernels: `auto` builds them where nvcc is found.", "`auto`"),
    Variable("MRISR_CUDA_ARCHS", "build", "CUDA architectures to compile for.", "`80 90a 100`"),
    Variable("MRISR_BUILD_TYPE", "build", "CMake build type of the native core.", "`Release`"),
    Variable("CXX", "build", "The C++ compiler.", "`c++`, `g++` or `clang++`, whichever is found first"),
    Variable("CUDA_HOME", "build", "Where the CUDA toolkit lies.", "`nvcc` on PATH, else `/usr/local/cuda`"),
    Variable("CUDA_PATH", "build", "As CUDA_HOME, read where that is not set.", "-"),
    Variable(
        "SOURCE_DATE_EPOCH", "build", "Date of the vendor kit's bill of materials, for builds that repeat.", "now"
    ),
    Variable("MRISR_KIT", "test", "The vendor kit's archive, set by `make vendor-kit`.", "its tests are skipped"),
    Variable("MRISR_LIBRARY", "test", "The installed libmrisr.so that the tests of libmrisr load.", "they are skipped"),
    Variable(
        "MRISR_MRD_CLIENT", "test", "A client of the ISMRMRD protocol to test `mrisr serve mrd` with.", "it is skipped"
    ),
    Variable("MRISR_FUZZ_ROUNDS", "test", "How many times as many damaged inputs the fuzz tests make.", "`1`"),
    Variable("MRISR_FUZZ_KEEP", "test", "Folder that gets the damaged inputs which fail.", "they are not kept"),
    Variable(
        "MRISR_SHARED",
        "test",
        "Folder with `data/train`, real scans that some tests look at.",
        "`shared` beside the checkout; without it they are skipped",
    ),
    Variable(
        "MRISR_DICOM_DATA",
        "test",
        "Folder with archives of real DICOM series.",
        "`shared/data/dicom` beside the checkout; without it their tests are skipped",
    ),
    Variable("MRISR_BENCH", "test", "`full`: `pytest benchmarks/` times full sizes.", "small sizes"),
    Variable("CI", "test", "Tests whose tools are missing fail in place of being skipped.", "skipped, with the reason"),
    Variable("OUT", "test", "Folder of the results of `benchmarks/gpu_day.py`.", "`out/benchmarks`"),
)


def cache_folder() -> Path | None:
    """Where mrisr may keep files between runs: `MRISR_CACHE`, else the user's cache; None where there is none."""
    setting = os.environ.get("MRISR_CACHE")
    if setting is not None:
        return None if setting.lower() in ("", "0", "off") else Path(setting)
    parent = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(parent or Path.home() / ".cache") / "mrisr"
    except RuntimeError:  # no HOME, and the user has no entry in the password file
        return None


@lru_cache(maxsize=1)
def bfloat16_instructions() -> tuple[str, ...]:
    """What this processor has for bfloat16, as it states itself; empty where nothing."""
    flags = processor()[1]
    return tuple(words for flag, words in BFLOAT16.items() if flag in flags)


def bfloat16_absence(device: Any) -> str | None:
    """Why bfloat16 cannot be had on a device (a `torch.device`, or alike); None where it can.

    PyTorch computes in it all the same, by emulation, and is many times as slow as in float32.
    """
    if device.type != "cpu":
        import torch

        major = torch.cuda.get_device_capability(device)[0]
        return None if major >= 8 else f"{device} has no bfloat16 (compute capability 8 or later has)"
    if bfloat16_instructions():
        return None
    return f"this processor ({processor()[0]}) has neither {' nor '.join(BFLOAT16.values())}"


def versions(names: Iterable[str] = LIBRARIES, absent: str | None = None) -> dict[str, str]:
    """Versions of mrisr, Python, the platform and the named packages; `absent` stands for one that is not installed
    (None: it is left out)."""
    table = {"mrisr": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        try:
            table[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if absent is not None:
                table[name] = absent
    return table


def processor() -> tuple[str, frozenset[str]]:
    """(model name, instruction sets) of the CPU; no instruction sets where the system does not list them."""
    model, flags = platform.processor() or platform.machine(), frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux: platform knows less, but something
        return model, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            return model, frozenset(value.split())
    return model, flags


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_threads() -> int:
    """CPU threads where nobody says how many: `OMP_NUM_THREADS`, else every core. MrisrWarning for one that is no whole
    number of at least 1, which OpenMP does not use either."""
    setting, count = _omp_threads()
    if setting and count is None:
        warnings.warn(
            f"OMP_NUM_THREADS: expected a whole number of at least 1, found {setting[:40]!r}; all {cores()} cores are "
            "used",
            MrisrWarning,
            stacklevel=3,
        )
    return count or cores()


def plain_threads() -> int:
    """`default_threads`, for those who are not the ones to warn."""
    return _omp_threads()[1] or cores()


def _omp_threads() -> tuple[str, int | None]:
    """(`OMP_NUM_THREADS`, the number that it begins with, or None)."""
    setting = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = setting.split(",")[0].strip()
    whole = first.isascii() and first.isdigit() and len(first) <= 9 and int(first) > 0
    return setting, int(first) if whole else None


def may_have_gpu() -> bool:
    """False where no GPU that PyTorch could use is in this machine: no driver has made a device, and none can be
    loaded. True says nothing for certain."""
    if sys.platform == "darwin":
        return False
    if not sys.platform.startswith("linux") or any(map(os.path.exists, GPU_NODES)):
        return True
    try:
        ctypes.CDLL(GPU_DRIVER)
    except OSError:
        return False
    return True


def machine() -> dict:
    """Processor, cores, threads in use and GPU."""
    import torch

    model, flags = processor()
    width = next((text for flag, text in (("avx512f", " AVX-512"), ("avx2", " AVX2")) if flag in flags), "")
    return {
        "cpu": model + width,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> str | None:
    """Commit of the checkout this code runs from ("+" where files differ from it); None outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        # Without optional locks: looking at a checkout does not write to it.
        changes = _git(here, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        return head + ("+" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    process = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return process.stdout.strip()


PAGE = """# Environment variables

Every variable that mrisr reads, written from `mrisr/environment.py` (`python -m mrisr.environment`). Options of a call
or a command stand above variables. `run`: Python and the commands; `build`: setup.py; `test`: tests and benchmarks.

Nothing leaves the machine: neither mrisr nor a package that it loads sends anything, and the telemetry of OpenVINO's
Python package and of ONNX Runtime is kept from starting (`mrisr/third_party.py`).

| variable | read by | what it does | where it is not set |
|---|---|---|---|
"""


def page() -> str:
    """docs/environment.md."""
    rows = (f"| `{v.name}` | {v.when} | {v.meaning} | {v.default} |" for v in VARIABLES)
    return PAGE + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
