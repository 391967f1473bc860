"""The parts of gpu_day.py that concern machine and kernels. Each takes a Setting and returns plain JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import timing
import torch
from checkout import ROOT
from gpu_setting import Setting


def said_by(*command: str) -> str:
    """What a program prints, or why it does not."""
    if shutil.which(command[0]) is None:
        return "not found"
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return (run.stdout if run.returncode == 0 else run.stderr).strip()


def environment(setting: Setting) -> dict:
    """Versions, and the two ceilings that everything else is measured against."""
    rates = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    n = 64 if setting.tiny else None
    ceilings = {
        "copy_gb_per_s": timing.copy_bandwidth(setting.device, 2**16 if setting.tiny else None) / 1e9,
        **{f"matmul_{name}_tflop_per_s": timing.matmul_rate(setting.device, t, n) / 1e12 for name, t in rates.items()},
    }
    return {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": said_by("nvcc", "--version").splitlines()[-1],
        "driver": said_by("nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"),
        "tools": {name: bool(shutil.which(name)) for name in ("cmake", "ninja", "g++", "compute-sanitizer", "ncu")},
        "ceilings": {name: round(value, 2) for name, value in ceilings.items()},
    }


def build(setting: Setting) -> dict:
    """The extension with CUDA kernels for this GPU, in place, by CMake alone: no pip, no setuptools, no network."""
    if setting.tiny:
        return {"skipped": "dry run: nothing is built", "command": shlex.join(build_command("90a"))}
    if _cuda_reason() is None:
        return {"built": "before"}
    absent = [name for name in ("cmake", "ninja") if _tool(name) is None]
    absent += [] if importlib.util.find_spec("pybind11") else ["pybind11"]
    absent += [] if _nvcc() else ["nvcc"]
    if absent:
        return {"skipped": f"no {', '.join(absent)} here: the CUDA C++ kernels are left out, the Triton ones run"}
    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}{minor}" + ("a" if major == 9 else "")
    failures = make_extension(arch)
    if not failures and (reason := _cuda_reason()) is not None:
        failures = [reason]
    return {"built": f"sm_{arch}", "failures": failures}


TREE = ROOT / "build" / "gpu-day"


def build_command(arch: str) -> list[str]:
    """What setup.py asks of CMake, for one architecture."""
    import pybind11

    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "MRISR_PYTHON": "ON",
        "MRISR_CUDA": "ON",
        "CMAKE_CUDA_ARCHITECTURES": f"{arch}-real",
    }
    options |= {"CMAKE_CUDA_COMPILER": _nvcc()} if _nvcc() else {}
    options |= {"CMAKE_MAKE_PROGRAM": _tool("ninja")} if _tool("ninja") else {}
    return [
        _tool("cmake") or "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(TREE),
        "-G",
        "Ninja",
        *(f"-D{k}={v}" for k, v in options.items()),
    ]


def _nvcc() -> str | None:
    """nvcc is not always on PATH where its toolkit is installed."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def _tool(name: str) -> str | None:
    """cmake or ninja: on PATH, or carried along, where pip's launchers name a Python that is elsewhere."""
    if importlib.util.find_spec(name) is not None:
        package = Path(importlib.util.find_spec(name).origin).parent
        for path in (package / "data" / "bin" / name, package.parent / "bin" / name):
            if path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
                path.chmod(0o755)
                return str(path)
    return shutil.which(name)


def make_extension(arch: str) -> list[str]:
    """Build and put beside mrisr's own files; returns what went wrong."""
    configure = build_command(arch)
    for command in (configure, [configure[0], "--build", str(TREE), "--target", "_native"]):
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            return [f"{shlex.join(command)}: {(run.stdout + run.stderr)[-1500:]}"]
    for library in TREE.glob("_native*.so"):
        shutil.copy2(library, ROOT / "mrisr" / library.name)
    return []


def _cuda_reason() -> str | None:
    """Why the CUDA kernels cannot run, asked in a fresh process: this one may have loaded an older module."""
    code = "import checkout; from mrisr import native; print(native.cuda_reason() or '')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_HERE)
    return run.stdout.strip() or (None if run.returncode == 0 else run.stderr[-500:])


_HERE = Path(__file__).resolve().parent


def parity(setting: Setting) -> dict:
    """Every kernel that has a GPU backend, on the device, against float64."""
    import parity as matrix

    rows = matrix.matrix(["noise", "gather"], without=("native",)) if setting.tiny else _side_by_side()
    ran = {(r["family"], r["backend"]) for r in rows if r["passed"]}
    pairs = {(r["family"], r["backend"]) for r in rows if r["backend"] != "reference"}
    failures = [f"{r['family']} {r['backend']} {r['what']}: {r['failures']}" for r in rows if r["failed"]]
    if setting.on_gpu:
        absent = {"cuda"} if _cuda_reason() is not None else set()  # the part "build" says why
        missing = sorted(pair for pair in pairs - ran if pair[1] not in absent)
        failures += [f"{family} {backend}: every case was skipped" for family, backend in missing]
    return {"rows": rows, "failures": failures}


def _side_by_side() -> list[dict]:
    """The matrix of all families, each in a process of its own: most of the time goes into compiling Triton kernels."""
    from mrisr import ops

    def rows_of(family: str) -> list[dict]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(_HERE / "parity.py"), "--families", family, "--answer", f"{folder}/rows"]
            command += ["--backends", "cuda", "triton", "sdpa", "reference"]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                failure = {"all": (run.stderr.strip().splitlines() or ["said nothing"])[-1]}
                return [
                    {
                        "family": family,
                        "backend": "any",
                        "what": "process",
                        "passed": 0,
                        "failed": 1,
                        "failures": failure,
                    }
                ]
            return json.loads(Path(f"{folder}/rows").read_text())

    with ThreadPoolExecutor(8) as pool:
        return [row for rows in pool.map(rows_of, sorted(ops.specs())) for row in rows]


def kernels(setting: Setting) -> dict:
    """Every family against eager, compiled and specialised rivals, as a share of the floor."""
    import ops

    return ops.measure(setting.device, quick=setting.tiny, say=lambda line: None)


def attention(setting: Setting) -> dict:
    """Triton against PyTorch's attention, row by row: the table that the dispatcher reads (attention3d.py --take)."""
    import attention3d
    import op_network_cases

    if not op_network_cases.has("attention3d"):
        return {"skipped": "this version has no attention3d"}
    return attention3d.measure(setting.device, quick=setting.tiny)


def sanitizer(setting: Setting) -> dict:
    """compute-sanitizer over every CUDA and Triton case: no thread may read or write out of bounds, or race."""
    words = [sys.executable, str(_HERE / "parity.py"), "--backends", "cuda", "triton", "--answer"]
    if setting.tiny or shutil.which("compute-sanitizer") is None:
        why = "dry run" if setting.tiny else "compute-sanitizer not found"
        return {"skipped": why, "command": shlex.join(["compute-sanitizer", *words, "ROWS"])}
    reports, failures = {}, []
    for tool in ("memcheck", "racecheck"):
        with tempfile.TemporaryDirectory() as folder:
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *words]
            # Every allocation from the driver: in PyTorch's cache a stray access lands in its own reserve, unseen.
            environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            run = subprocess.run([*command, f"{folder}/rows"], capture_output=True, text=True, env=environment)
        reports[tool] = (run.stdout.strip().splitlines() or ["nothing printed"])[-1]
        if run.returncode:
            failures.append(f"{tool} ended with {run.returncode}: {run.stdout[-1500:]}")
    return {"tools": reports, "failures": failures}
