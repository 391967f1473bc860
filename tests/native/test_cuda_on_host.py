"""CUDA kernels whose threads never meet, run on the host thread by thread: every SPEC case, without a GPU.

The kernels' own source is compiled by the host's compiler against stand-ins for CUDA's headers (tests/native/on_host).
That proves indices, branches and arithmetic, not speed, not launches, and no kernel with shared memory or shuffles.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mrisr.ops import _parity, blend, noise, sampler_step
from mrisr.ops._dispatch import Backend

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "csrc" / "core"
KERNELS = ("blend", "noise", "sampler_step")
HOST = ("isa", "noise", "parallel", "sampler_step")  # the checks of arguments are in the CPU files
LAUNCH = re.compile(r"(\w+(?:<\w+>)?)<<<(.*?), (\w+), 0,\s*static_cast<cudaStream_t>\(stream\)>>>\((.*?)\);", re.DOTALL)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("cuda_on_host")
    sources = [HERE / "on_host" / "doorway.cpp", *(CORE / f"{name}.cpp" for name in HOST)]
    for name in KERNELS:
        text, launches = LAUNCH.subn(r"on_host(\2, \3, [&] { \1(\4); });", (CORE / f"{name}.cu").read_text())
        assert launches and "<<<" not in text, f"{name}.cu launches in a way that this test does not know"
        sources.append(folder / f"{name}_cu.cpp")
        sources[-1].write_text(text)
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-DMRISR_WITH_CUDA", "-fPIC", "-shared", "-pthread"]
    command += [f"-I{HERE / 'on_host'}", f"-I{CORE}", *map(str, sources), "-o", str(folder / "on_host.so")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    return ctypes.CDLL(str(folder / "on_host.so"))


@pytest.fixture
def host(library, monkeypatch):
    """The native module's CUDA doorways, on the host."""

    def triple(values):
        return (ctypes.c_int64 * 3)(*values)

    def pointers(values):
        return (ctypes.c_void_p * len(values))(*values)

    def call(name, *arguments):
        function = getattr(library, f"on_host_{name}")
        function.restype = ctypes.c_char_p
        error = function(*arguments)
        assert error is None, error

    p, i64, u32, f32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_float

    def normal_noise(out, shape, origin, grid, seed, sample, step, stream):
        box = map(triple, (shape, origin, grid))
        call("normal_noise", p(out), *box, ctypes.c_uint64(seed), u32(sample), u32(step))

    def step(volumes, table, rows, clock, raw, noisy, low, high, shape, origin, grid, dtype, stream):
        numbers = int(raw), int(noisy), f32(low), f32(high)
        box = map(triple, (shape, origin, grid))
        call("sampler_step", pointers(volumes), p(table), i64(rows), p(clock), *numbers, *box, dtype)

    def blend_add(volume, v_size, v_stride, tile, t_size, t_stride, origin, weights, dtype, stream):
        at = p(volume), triple(v_size), triple(v_stride), p(tile), triple(t_size), triple(t_stride)
        call("blend_add", *at, triple(origin), pointers(weights), dtype)

    def gather(tile, t_size, t_stride, volume, v_size, v_stride, origin, stream):
        at = p(tile), triple(t_size), triple(t_stride), p(volume), triple(v_size), triple(v_stride)
        call("gather", *at, triple(origin))

    module = SimpleNamespace(
        cuda_normal_noise=normal_noise, cuda_sampler_step=step, cuda_blend_add=blend_add, cuda_gather=gather
    )
    for family in (blend, noise, sampler_step):
        monkeypatch.setattr(family, "native", SimpleNamespace(module=lambda: module))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))


RUNS = {
    "noise": (noise.SPEC, noise._run_cuda, noise._on),
    "sampler_step": (sampler_step.SPEC, sampler_step._run_cuda, sampler_step._on),
    "blend": (blend.SPEC, blend._cuda_add, blend._on),
    "gather": (blend.GATHER_SPEC, blend._cuda_gather, blend._on),
}


@pytest.mark.parametrize("name", RUNS)
def test_values(host, name, monkeypatch):
    spec, run, on = RUNS[name]
    # In the place of the C++ backend, whose tensors lie on the CPU as well.
    stand_in = Backend("native", run, lambda: None, on("cpu"))
    found = tuple(stand_in if b.name == "native" else b for b in spec.family.backends)
    monkeypatch.setitem(spec.family.__dict__, "backends", found)
    for dtype in set(spec.tolerance) - {torch.float64}:
        for case in spec.cases:
            outcome = _parity.values(spec, stand_in, dtype, case)
            assert outcome.status == "passed", f"{name} {dtype} {case}: {outcome}"
