"""Result files: what was measured, on what, by which commit; written whole or not at all."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("mrisr", "torch", "triton", "openvino", "numpy")


def write(name: str, content: dict, folder: Path = RESULTS) -> Path:
    """Write `content` and the circumstances to folder/name.json and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    beside = path.with_suffix(".json.new")
    beside.write_text(json.dumps({**content, **circumstances()}, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return path


def circumstances() -> dict:
    """Machine (make and size, no names), versions, date and commit."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "gpu": _gpu(), "load": _load()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
    }


def _cpu() -> str:
    names = [
        line.split(":")[1].strip() for line in _text("/proc/cpuinfo").splitlines() if line.startswith("model name")
    ]
    flags = _text("/proc/cpuinfo")
    width = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return " ".join([*(names[:1] or [platform.machine()]), width]).strip()


def _load() -> float:
    """Other work on the machine, as the one-minute load when the record is written."""
    return round(os.getloadavg()[0], 1)


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str:
    run = subprocess.run(["git", *words], capture_output=True, text=True, cwd=RESULTS.parent, check=False)
    return run.stdout.strip() if run.returncode == 0 else ""
