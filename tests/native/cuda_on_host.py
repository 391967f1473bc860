"""Every CUDA kernel of csrc/core run on the CPU, its threads as fibres: values against float64, in several orders.

    python tests/native/cuda_on_host.py [--results DIR]

The kernels' own source is compiled by the host's compiler against stand-ins for CUDA's headers (tests/native/on_host):
blocks of threads that meet at barriers and shuffles, shared memory that is NaN when a block begins, tensors between
pages that nobody may touch, addresses and indices checked. That shows values, indices, barriers and races; it shows
nothing about speed, registers, memory order between warps, or how a device rounds expf and rsqrtf.

Prints a row per operator and dtype, and the kernels that ran; with --results writes cuda_on_host.json and .md there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch

from mrisr import native
from mrisr.ops._dispatch import Backend

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.ops import parity
from tests.ops.cases import SPECS
from tests.ops.cases.spec import Spec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORE = ROOT / "csrc" / "core"
# Of the CPU files, those that check arguments of the CUDA ones.
CHECKS = ("isa", "noise", "noise_words", "pages", "parallel", "sampling")
# (order of threads and blocks, seed, most blocks of a launch, guarded behind its tensors or before them)
RUNS = (
    ("ascending", 0, 16384, True),
    ("descending", 0, 3, False),
    ("shuffled", 1, 16384, False),
    ("shuffled", 2, 3, True),
)
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-pthread", "-fvisibility=hidden", "-DMRISR_WITH_CUDA",
         "-DMRISR_MOST_BLOCKS=::on_host::most_blocks()", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
         "-Wno-clobbered")  # fmt: skip
KERNEL_FLAGS = ("-fsanitize=alignment,bounds,signed-integer-overflow,shift,integer-divide-by-zero",
                "-fsanitize-undefined-trap-on-error")  # fmt: skip


# What the host's compiler does not read: launches, shared memory, and the heads of kernels.


def for_host(text: str) -> str:
    """CUDA source as C++ against tests/native/on_host."""
    text = re.sub(
        r"__shared__ (\w+) (\w+)((?:\[[^\]]+\])+);",
        r"auto& \2 = on_host::shared<\1\3>([] {});",
        text,
    )
    return _launches(_kernels(text))


def _kernels(text: str) -> str:
    """Every kernel says first that it was entered, with its template's arguments."""
    head = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?\w+(?=\()")
    out, done = [], 0
    for found in head.finditer(text):
        body = text.index("{", _closing(text, found.end())) + 1
        out.append(text[done:body] + " static on_host::Entry entry_(__PRETTY_FUNCTION__); entry_.count();")
        done = body
    return "".join(out) + text[done:]


def _launches(text: str) -> str:
    """kernel<<<grid, block, 0, stream>>>(arguments) -> on_host::launch(grid, block, [&] { kernel(arguments); })"""
    while (at := text.find("<<<")) >= 0:
        callee = re.search(r"\w+(?:<[\w, ]*>)?$", text[:at]).group()
        end = text.index(">>>", at)
        grid, block, _, _ = _parts(text[at + 3 : end])
        close = _closing(text, end + 3)
        call = f"on_host::launch({grid}, {block}, [&] {{ {callee}{text[end + 3 : close + 1]}; }})"
        text = text[: at - len(callee)] + call + text[close + 1 :]
    return text


def _closing(text: str, at: int) -> int:
    """Where the bracket at `at` closes."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"no closing bracket after {text[at : at + 40]!r}")


def _parts(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "(<") - (letter in ")>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def sources() -> dict[str, str]:
    """The CUDA files of the core: name -> text."""
    return {path.name: path.read_text() for pattern in ("*.cu", "*.cuh") for path in sorted(CORE.rglob(pattern))}


def kernels() -> set[str]:
    """The names of all kernels."""
    heads = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(")
    return {name for text in sources().values() for name in heads.findall(text)}


def kept() -> Path:
    """The folder under build/ of object files of exactly these sources, flags and versions: a later run finds them."""
    digest = hashlib.sha256(repr((FLAGS, KERNEL_FLAGS, sys.version, torch.__version__)).encode())
    for folder in (CORE, HERE / "on_host", ROOT / "csrc" / "python"):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(path.name.encode() + path.read_bytes())
    digest.update(Path(__file__).read_bytes())  # how the sources are rewritten
    folder = ROOT / "build" / "cuda_on_host" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Host:
    """Modules made from the CUDA files, and the object files that they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, changed: dict[str, str] | None = None) -> ModuleType:
        """The doorway of csrc/python/cuda.cpp over kernels on the host; `changed`: some of `sources`, replaced.
        One a process: pybind11 keeps modules by their name. Raises RuntimeError with what the compiler says."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        ours = [HERE / "on_host" / f"{name}.cpp" for name in ("fibres", "memory", "module")]
        ours += [ROOT / "csrc" / "python" / "cuda.cpp", *(CORE / f"{name}.cpp" for name in CHECKS)]
        texts = {**sources(), "faulty.cu": (HERE / "on_host" / "faulty.cu").read_text(), **(changed or {})}
        headers = "".join(text for name, text in texts.items() if name.endswith(".cuh"))
        work = [(path, self.folder / f"{path.stem}.o", ()) for path in ours]
        for name, text in texts.items():
            path = place / (name if name.endswith(".cuh") else f"{Path(name).stem}_cu.cpp")
            path.write_text(for_host(text))
            if path.suffix == ".cpp":
                state = hashlib.sha256((headers + text).encode()).hexdigest()[:16]
                work.append((path, self.folder / f"{path.stem}_{state}.o", KERNEL_FLAGS))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda one: one[1].exists() or self._compile(*one), work))
        library = place / f"mrisr_cuda_on_host{sysconfig.get_config_var('EXT_SUFFIX')}"
        c10 = Path(torch.__file__).parent / "lib"
        _run(["g++", "-shared", "-pthread", *(str(out) for _, out, _ in work), "-o", str(library)]
             + [f"-L{c10}", "-lc10", f"-Wl,-rpath,{c10}"])  # fmt: skip
        loader = importlib.machinery.ExtensionFileLoader("mrisr_cuda_on_host", str(library))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        loader.exec_module(module)
        shutil.rmtree(place)  # it is in memory
        return module

    def _compile(self, path: Path, out: Path, flags: tuple[str, ...]) -> None:
        import pybind11

        ours = [path.parent, HERE / "on_host", CORE, ROOT / "csrc" / "python"]
        theirs = [sysconfig.get_path("include"), pybind11.get_include(), Path(torch.__file__).parent / "include"]
        folders = [*(f"-I{folder}" for folder in ours), *(f"-isystem{folder}" for folder in theirs)]
        unfinished = out.with_suffix(f".{os.getpid()}.part")  # an interrupted run leaves no object file that is none
        _run(["g++", *FLAGS, *flags, *folders, "-c", str(path), "-o", str(unfinished)])
        unfinished.replace(out)


def _run(command: list[str]) -> None:
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(built.stderr[-4000:])


# Values.


@contextmanager
def standing_in(module: ModuleType) -> Iterator[None]:
    """Inside, the backend "native" of every operator is its CUDA backend over `module`, with tensors on the CPU."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(native, "module", lambda: module))
        stack.enter_context(mock.patch.object(torch.cuda, "device", lambda device: nullcontext()))
        stream = SimpleNamespace(cuda_stream=0)
        stack.enter_context(mock.patch.object(torch.cuda, "current_stream", lambda *device: stream))
        for spec in specs().values():
            named = {backend.name: backend for backend in spec.family.backends}
            stand_in = Backend("native", named["cuda"].run, lambda: None, named["native"].accepts)
            found = tuple(stand_in if b.name == "native" else b for b in spec.family.backends)
            stack.enter_context(mock.patch.dict(spec.family.__dict__, backends=found))
        yield


@contextmanager
def under(module: ModuleType, run: tuple[str, int, int, bool]) -> Iterator[None]:
    """Inside, kernels run as `run` of RUNS says, on tensors between guarded pages, fresh ones full of NaN."""
    module.run_in_order(*run[:3])
    module.guard(run[3])
    try:
        yield
    finally:
        module.unguard()


def specs() -> dict[str, Spec]:
    """The operators that have a CUDA kernel."""
    return {name: spec for name, spec in SPECS.items() if "cuda" in spec.family.names().split(", ")}


def tasks(spec: Spec) -> Iterator[tuple[torch.dtype, str]]:
    """(dtype, "values" or "gradients")."""
    for dtype in (d for d in spec.tolerance if d != torch.float64):
        yield dtype, "values"
        if spec.gradients:
            yield dtype, "gradients"


def results(spec: Spec, dtype: torch.dtype, what: str, case: str) -> dict[str, torch.Tensor]:
    """What the stand-in computes: {"value": ...} or the gradients by name."""
    args = parity.arguments(spec, case, dtype)
    if what == "values":
        return {"value": spec.call(**args, backend="native")}
    return parity.derivatives(lambda **kw: spec.call(**kw, backend="native"), spec, args, dtype)


def expected(spec: Spec, dtype: torch.dtype, what: str, case: str) -> dict[str, torch.Tensor]:
    """The same by the reference in float64."""
    args = parity.arguments(spec, case, dtype)
    if what == "values":
        return {"value": parity.oracle(spec, args)}
    plain = parity.cast({k: v for k, v in args.items() if k != "device"}, torch.float64)
    return parity.derivatives(spec.reference, spec, plain, dtype)


def limit(spec: Spec, dtype: torch.dtype, what: str) -> float:
    """The SPEC's tolerance; a gradient in half precision is itself rounded."""
    if what == "values":
        return spec.tolerance[dtype]
    return parity.GRADIENT_TOLERANCE if dtype == torch.float32 else max(spec.tolerance[dtype], torch.finfo(dtype).eps)


def check(module: ModuleType, spec: Spec, dtype: torch.dtype, what: str, case: str) -> float:
    """The error of a case, in the orders of RUNS (half precision: two of them). Raises AssertionError where two orders
    give different bits, RuntimeError where a kernel leaves its memory or hangs."""
    right, first, worst = expected(spec, dtype, what, case), None, 0.0
    for run in RUNS if dtype == torch.float32 else RUNS[2:]:
        with standing_in(module), under(module, run):
            found = results(spec, dtype, what, case)
        if first is None:
            first = found
            for name, value in found.items():
                scale = float(right[name].abs().nan_to_num(0.0).max()) if right[name].numel() else 1.0
                scale = max(1.0, scale) if what == "gradients" else 1.0
                worst = max(worst, parity.deviation(value.double() / scale, right[name] / scale))
        for name, value in found.items():
            same = torch.equal(value.nan_to_num(1.5), first[name].nan_to_num(1.5))
            assert same, f"{spec.family.name} {case} {dtype}: {name} depends on the order of threads ({run})"
    return worst


def matrix(module: ModuleType, names: set[str] | None = None, half: bool = True) -> list[dict]:
    """A row per operator, dtype and values or gradients: cases, largest error, tolerance. Raises as `check`."""
    rows = []
    with parity.nan_filled_empty():
        for name, spec in specs().items():
            for dtype, what in tasks(spec) if names is None or name in names else ():
                if dtype != torch.float32 and not half:
                    continue
                errors = {case: check(module, spec, dtype, what, case) for case in spec.cases}
                worst = max(errors, key=errors.get)
                row = {"operator": name, "dtype": str(dtype).removeprefix("torch."), "what": what, "cases": len(errors)}
                rows.append(row | {"error": errors[worst], "worst": worst, "tolerance": limit(spec, dtype, what)})
    return rows


# Barriers: each taken out in turn. What nobody misses is either not needed, or not seen.


def barriers() -> Iterator[tuple[str, int, str]]:
    """(file, line, its text) of every barrier in the kernels."""
    for name, text in sources().items():
        for number, line in enumerate(text.splitlines(), 1):
            if re.fullmatch(r"\s*__sync\w+\(\);", line):
                yield name, number, line.strip()


def missed(folder: Path, name: str, number: int) -> str:
    """What goes wrong without this barrier; empty where nothing does."""
    lines = sources()[name].splitlines()
    lines[number - 1] = ""
    module = Host(folder).module({name: "\n".join(lines)})
    try:
        rows = matrix(module, {"group_norm", "rms_norm"}, half=False)
    except (AssertionError, RuntimeError) as error:
        return str(error)
    wrong = [row for row in rows if not row["error"] <= row["tolerance"]]
    return f"{wrong[0]['operator']} {wrong[0]['worst']}: error {wrong[0]['error']:.1e}" if wrong else ""


def in_child(function: Callable, *arguments):
    """function(*arguments) in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def table(content: dict) -> str:
    """The matrix as Markdown."""
    lines = [
        "# CUDA kernels run on the CPU",
        "",
        f"By `python tests/native/cuda_on_host.py --results benchmarks/results --barriers`; {content['date']}, commit "
        f"{content['commit']}. The kernels' own source, compiled for the host, threads as fibres: {len(RUNS)} orders "
        "of threads and blocks (two in half precision) with equal bits, tensors between guarded pages, addresses, "
        "indices and shuffles checked. Error: largest |result - float64| / max(1, |float64|); gradients by their "
        "largest entry. "
        "No value has been seen from a device.",
        "",
        "| operator | dtype | what | cases | largest error | tolerance |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        "| {operator} | {dtype} | {what} | {cases} | {error:.1e} | {tolerance:.0e} |".format(**row)
        for row in content["rows"]
    ]
    lines += ["", "| kernel | instantiations | threads run |", "|---|---|---|"]
    for name in sorted(kernels()):
        found = [threads for kernel, threads in content["kernels"].items() if f"::{name}(" in kernel]
        lines.append(f"| `{name}` | {len(found)} | {sum(found):,} |")
    if content["barriers"]:
        lines += [
            "",
            f"{len(content['barriers'])} of {len(list(barriers()))} barriers taken out in turn, and what is seen then:",
            "",
            "| barrier | seen |",
            "|---|---|",
        ]
        lines += [
            f"| {where} | {seen or 'nothing: it is not needed, or not tested'} |"
            for where, seen in content["barriers"].items()
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="write cuda_on_host.json and cuda_on_host.md into this folder")
    parser.add_argument("--barriers", action="store_true", help="also take out every barrier in turn (minutes)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        seen = {f"{f}:{n} `{t}`": in_child(missed, folder, f, n) for f, n, t in barriers() if options.barriers}
        module = Host(folder).module()
        rows = matrix(module)
        entered = {kernel: threads for kernel, threads in module.ran().items() if threads}
    for row in rows:
        print("{operator:16} {dtype:9} {what:10} {cases:3} cases  error {error:.1e} of {tolerance:.0e}".format(**row))
    for where, what in seen.items():
        print(f"without {where}: {what or 'nothing is seen'}")
    absent = {k for k in kernels() if not any(f"::{k}(" in kernel for kernel in entered)}
    print(
        f"{len(entered)} instantiations of {len(kernels())} kernels ran; not run: {', '.join(sorted(absent)) or 'none'}"
    )
    if options.results:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import record

        path = record.write("cuda_on_host", {"rows": rows, "kernels": entered, "barriers": seen}, options.results)
        path.with_suffix(".md").write_text(table(json.loads(path.read_text())), encoding="utf-8")
    return 1 if absent or any(not row["error"] <= row["tolerance"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
