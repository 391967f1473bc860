"""Compile every Triton and CUDA kernel for sm_80, sm_90(a) and sm_100, without a GPU, and print what each
costs.

    python tests/native/compile_only.py [--triton | --cuda] [--arch 90]

Prints registers, shared memory and spills of every kernel. Exits 1 if one does not compile; where nvcc or
ptxas is absent that part is left out, with the reason in print. Nothing is run: see
benchmarks/results/UNMEASURED.md for what never ran on a device.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHS = (80, 90, 100)
CUDA_FLAGS = {80: "compute_80,code=sm_80", 90: "compute_90a,code=sm_90a", 100: "compute_100,code=sm_100"}


def assemblers() -> list[str]:
    """Every ptxas at hand. Triton's own come first: they know the PTX version that Triton writes."""
    import triton

    carried = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    named = [str(carried / "ptxas"), str(carried / "ptxas-blackwell"), "ptxas"]
    return [found for name in named if (found := shutil.which(name))]


def costs(report: str) -> str:
    """ "32 registers, 0 B spilled" from ptxas -v."""
    registers = re.findall(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    shared = re.findall(r"(\d+) bytes smem", report)
    spilled = sum(int(n) for pair in spills for n in pair)
    parts = [f"{max(map(int, registers), default=0):>3} registers", f"{spilled} B spilled"]
    return ", ".join([*parts, f"{max(map(int, shared))} B static shared"] if shared else parts)


def aligned(signature: dict[str, str]) -> dict:
    """What Triton finds at run time: addresses are multiples of 16 bytes, strides of 16 elements."""
    regular = (kind.startswith("*") or name.startswith("stride") for name, kind in signature.items())
    return {(place,): [["tt.divisibility", 16]] for place, is_regular in enumerate(regular) if is_regular}


def compile_triton(archs: list[int]) -> list[str]:
    """Failures, one line each; as many compilers at once as there are cores."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("compile_only: unset TRITON_INTERPRET; interpreted kernels cannot be compiled")
    import mrisr.kernels

    families = sorted(module.name for module in pkgutil.iter_modules(mrisr.kernels.__path__))
    variants = {name: importlib.import_module(f"mrisr.kernels.{name}").VARIANTS for name in families}
    tasks = [(name, k, arch) for name in families for k in range(len(variants[name])) for arch in archs]
    failures = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for passed, line in pool.map(_compile_variant, tasks, chunksize=4):
            print(line, flush=True)
            if not passed:
                failures.append(line)
    return failures


def _compile_variant(task: tuple[str, int, int]) -> tuple[bool, str]:
    """Whether variant `k` of a family compiles for an architecture, and what is said of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    family, k, arch = task
    name, kernel, signature, constants, *launch = importlib.import_module(f"mrisr.kernels.{family}").VARIANTS[k]
    full = signature | dict.fromkeys(constants, "constexpr")
    ordered = {argument: full[argument] for argument in kernel.arg_names}
    label = f"triton {family}.{name} sm_{arch}"
    try:
        source = ASTSource(kernel, ordered, constants, attrs=aligned(ordered))
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(*launch))
        return True, f"ok   {label}: {assemble(compiled.asm['ptx'])}, {compiled.metadata.shared} B shared"
    except Exception as error:  # every kernel is tried; the failure is printed and counted
        return False, f"FAIL {label}: {type(error).__name__}: {error}"


def assemble(ptx: str) -> str:
    """What `ptxas -v` says of one kernel, by the first ptxas that knows its version and architecture."""
    arch = re.search(r"\.target\s+(sm_\w+)", ptx).group(1)
    complaints = ["no ptxas at hand"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        for ptxas in assemblers():
            command = [ptxas, "-v", f"-arch={arch}", str(path), "-o", os.devnull]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode == 0:
                return costs(run.stderr)
            complaints.append(run.stderr.strip().splitlines()[0])
    if all("nsupported" in line or "not defined for option" in line for line in complaints[1:]):
        return f"registers unknown ({complaints[-1]})"
    raise RuntimeError("; ".join(complaints[1:]))


def short_name(mangled: str) -> str:
    """stats_kernel<f16> of a mangled kernel name."""
    name = re.search(r"\d([a-z_]+_kernel)", mangled)
    kind = next(
        (text for code, text in (("bfloat16E", "bf16"), ("halfE", "f16"), ("IfE", "f32")) if code in mangled),
        "",
    )
    return (name.group(1) if name else mangled) + (f"<{kind}>" if kind else "")


def compile_cuda(archs: list[int]) -> list[str]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("skip CUDA C++: no nvcc on PATH")
        return []
    tasks = [(nvcc, source, arch) for source in sorted((ROOT / "csrc").rglob("*.cu")) for arch in archs]
    failures = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for passed, lines in pool.map(_compile_source, tasks):
            print("\n".join(lines), flush=True)
            failures += [] if passed else lines
    return failures


def _compile_source(task: tuple[str, Path, int]) -> tuple[bool, list[str]]:
    """Whether a CUDA file compiles for an architecture, and a line on every kernel in it."""
    nvcc, source, arch = task
    label = f"nvcc {source.relative_to(ROOT)} sm_{arch}"
    command = [nvcc, "-std=c++17", "-O3", "-DMRISR_WITH_CUDA", f"-I{ROOT / 'csrc' / 'core'}"]
    command += [f"-gencode=arch={CUDA_FLAGS[arch]}", "-Xptxas", "-v", "-c", str(source), "-o", os.devnull]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return False, [f"FAIL {label}: {run.stderr.strip()}"]
    entries = run.stderr.split("Compiling entry function '")[1:]
    return True, [f"ok   {label} {short_name(entry.split(chr(39))[0])}: {costs(entry)}" for entry in entries]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triton", action="store_true", help="only the Triton kernels")
    parser.add_argument("--cuda", action="store_true", help="only the CUDA files")
    parser.add_argument("--arch", type=int, choices=ARCHS, action="append", help="default: all three")
    options = parser.parse_args()
    archs, both = options.arch or list(ARCHS), options.triton == options.cuda
    failures = compile_triton(archs) if both or options.triton else []
    failures += compile_cuda(archs) if both or options.cuda else []
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
