"""Where something ran: processor, versions, commit. For `mrisr doctor`, result files and the record of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "triton", "openvino", "numpy", "scipy", "nibabel")


def versions(names: Iterable[str] = LIBRARIES, absent: str | None = None) -> dict[str, str]:
    """Versions of mrisr, Python, the platform and the named packages; `absent` stands for one that is not installed
    (None: it is left out)."""
    from mrisr import __version__

    found = {"mrisr": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if absent is not None:
                found[name] = absent
    return found


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
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()
