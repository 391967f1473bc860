"""The native module by its own doorway: bad input, threads, instruction sets, fork, guard pages."""

# ruff: noqa: E501 (tables of calls read better unbroken)
from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

core = pytest.importorskip("mrisr._native")
ROOT = Path(__file__).resolve().parents[2]
# Every case of the native core in bfloat16, a line each; an error where one is off.
BFLOAT16 = """
import torch
from tests.ops import parity
from tests.ops.cases import SPECS
with parity.nan_filled_empty():
    for name, spec in SPECS.items():
        for backend in (b for b in spec.family.backends if b.name == "native"):
            for dtype, case in parity.tasks(spec, backend):
                if dtype == torch.bfloat16:
                    outcome = parity.values(spec, backend, dtype, case)
                    assert outcome.status == "passed", (name, case, outcome.reason)
                    print(name, case)
"""


def pointer(array: np.ndarray) -> int:
    return array.ctypes.data


def normal(shape, threads: int) -> np.ndarray:
    out = np.full(shape, np.nan, np.float32)
    core.normal_noise(pointer(out), shape, (0, 0, 0), shape, 3, 0, 0, threads)
    return out


def norm_stats(x: np.ndarray, groups: int, threads: int, last: bool) -> np.ndarray:
    n, c, v = (x.shape[0], x.shape[2], x.shape[1]) if last else x.shape
    partials = np.full((n, core.group_norm_slabs(v), groups, 3), np.nan)
    core.group_norm_stats(pointer(partials), pointer(x), 0, n, c, v, groups, last, 0, threads)
    return partials


BOX = ((2, 2, 2), (0, 0, 0), (2, 2, 2))
MATRIX = [1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0]


def sampling(source, target, order=1, boundary=0, matrix=MATRIX, threads=1):
    """What follows the addresses in resample3d and its derivatives."""
    return 1, 1, source, target, matrix, False, order, boundary, threads


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda a: core.normal_noise(0, *BOX, 0, 0, 0, 1), "noise: out is a null pointer"),
        (lambda a: core.normal_noise(a, (2, -1, 2), *BOX[1:], 0, 0, 0, 1), r"shape\[1\] must not be negative; it is -1"),
        (lambda a: core.normal_noise(a, (3, 2, 2), *BOX[1:], 0, 0, 0, 1), "on axis 0 it starts at 0 with 3 voxels, and the grid has 2"),
        (lambda a: core.normal_noise(a, *BOX, 0, 0, 0, 0), "threads must be at least 1; it is 0"),
        (lambda a: core.normal_noise(a + 2, *BOX, 0, 0, 0, 1), "out: address is not aligned to 4 bytes"),
        (lambda a: core.axis_apply(a, a, 0, 1, 2, 2, 1, 0.0, 1), "axis_apply: matrix is a null pointer"),
        (lambda a: core.axis_apply(a, a, a, 1, 2, 2, 1, 1.5, 1), r"drop must lie in \[0, 1\); it is 1.5"),
        (lambda a: core.axis_apply(a, a, a, 2**40, 2**30, 2, 1, 0.0, 1), "more elements than an int64 offset can reach"),
        (lambda a: core.axis_apply(a, a, a, 1, -2, 2, 1, 0.0, 1), r"x.size\[1\] must not be negative; it is -2"),
        (lambda a: core.group_norm_stats(a, a, 0, 1, 6, 4, 4, False, 0, 1), r"channels \(6\) must be divisible by groups \(4\)"),
        (lambda a: core.group_norm_stats(a, 0, 0, 1, 4, 4, 2, False, 0, 1), "group_norm_stats: null pointer"),
        (lambda a: core.group_norm_merge(a, a, a, 1, 1, 1, 0.0), "eps must be positive; it is 0"),
        (lambda a: core.gather(a, (1, 1, 1), (1, 1, 1), a, (0, 1, 1), (1, 1, 1), (0, 0, 0), 1), r"volume.size\[0\] must be positive"),
        (lambda a: core.gather(a, (1, 1, 2), (1, 1, 2), a, (1, 1, 1), (1, 1, 1), (0, 0, 0), 1), "last axis of volume and tile must be contiguous"),
        (lambda a: core.prefilter_f32(a, a, 1, (1, 4, 1), 2, 0, False, 1), "prefilter: order must be 1, 3 or 5; it is 2"),
        (lambda a: core.prefilter_f32(a, a, 1, (1, 4, 1), 3, 2, False, 1), r"prefilter: boundary must be 0 \(linear\) or 1 \(mirror\); it is 2"),
        (lambda a: core.prefilter_f64(a, a, 1, (1, 0, 1), 3, 0, True, 1), "prefilter: an axis needs at least one sample; it has 0"),
        (lambda a: core.prefilter_f32(0, a, 1, (1, 4, 1), 3, 0, False, 1), "prefilter: out is a null pointer"),
        (lambda a: core.resample3d_f32(a, a, 0, *sampling((0, 1, 1), (1, 1, 1))), r"resample3d: source\[0\] must lie in \[1, 2\^30\); it is 0"),
        (lambda a: core.resample3d_f32(a, a, 0, *sampling((1, 1, 1), (1, -1, 1))), r"resample3d: target\[1\] must not be negative; it is -1"),
        (lambda a: core.resample3d_f32(a, 0, 0, *sampling((1, 1, 1), (1, 1, 1))), "resample3d: coefficients is a null pointer"),
        (lambda a: core.resample3d_f64(0, a, 0, *sampling((1, 1, 1), (1, 1, 1))), "resample3d: target is a null pointer"),
        (lambda a: core.resample3d_f32(a, a, 0, *sampling((1, 1, 1), (1, 1, 1), matrix=[np.inf] * 12)), "resample3d: matrix must be finite; it has inf"),
        (lambda a: core.resample3d_slope_f32(0, a, a, a, *sampling((1, 1, 1), (1, 1, 1))), "resample3d_slope: out is a null pointer"),
        (lambda a: core.resample3d_adjoint_f32(a, a, a, *sampling((1, 1, 1), (1, 1, 1), threads=0)), "threads must be at least 1; it is 0"),
        (lambda a: core.blend_add(a, *[(1, 1, 1)] * 2, a, *[(1, 1, 1)] * 2, (2, 0, 0), (a, a, a), 0, 1), r"origin\[0\] must lie in \[0, 1\]; it is 2"),
    ],
)  # fmt: skip
def test_bad_input_is_a_value_error_with_its_reason(call, says):
    scratch = np.zeros(64)
    with pytest.raises(ValueError, match=says):
        call(pointer(scratch))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_results_do_not_depend_on_the_thread_count(threads):
    assert np.array_equal(normal((7, 30, 200), 1), normal((7, 30, 200), threads))
    x = np.random.default_rng(0).standard_normal((2, 40_000, 8)).astype(np.float32)
    for last in (True, False):
        y = x if last else np.ascontiguousarray(x.transpose(0, 2, 1))
        assert np.array_equal(norm_stats(y, 2, 1, last), norm_stats(y, 2, threads, last))
    matrix, volume = np.random.default_rng(1).standard_normal((50, 40)), x[:1, :].reshape(40, 100, 80)
    found = []
    for count in (1, threads):
        out = np.full((50, 100, 80), np.nan, np.float32)
        core.axis_apply(pointer(out), pointer(volume), pointer(matrix), 1, 40, 50, 8000, 0.0, count)
        found.append(out)
    assert np.array_equal(*found)


@pytest.mark.parametrize("isa", ["base", pytest.param("v3", marks=pytest.mark.slow("as base, three processes more"))])
def test_older_processors_compute_the_same(isa):
    """The noise bit for bit, and bfloat16 once more; ctest does the same for float32 (tests/native/CMakeLists.txt)."""
    code = "import sys; from mrisr.ops.noise import normal_noise as n; sys.stdout.write(n((3, 5, 70), seed=9).numpy().tobytes().hex())"
    environment = {**os.environ, "MRISR_ISA": isa, "OMP_NUM_THREADS": "1"}
    run = [subprocess.run([sys.executable, "-c", code], env=e, capture_output=True, text=True, check=True).stdout
           for e in (environment, os.environ)]  # fmt: skip
    assert run[0] == run[1]
    done = subprocess.run([sys.executable, "-c", BFLOAT16], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 50, done.stdout[-2000:] + done.stderr[-2000:]


def test_workers_survive_a_fork():
    """Data loaders fork after the pool has started; the child makes its own."""
    expected = normal((64, 64, 64), 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(normal((64, 64, 64), 2), expected) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_python_threads_may_call_at_once():
    from concurrent.futures import ThreadPoolExecutor

    expected = normal((40, 40, 40), 1)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: normal((40, 40, 40), 2), range(16)):
            assert np.array_equal(found, expected)


class Guarded:
    """Floats that end where an unreadable page begins: one element past the end is a crash, not a wrong
    number."""

    def __init__(self, count: int) -> None:
        page, size = mmap.PAGESIZE, 4 * count
        pages = -(-size // page) * page
        self.memory = mmap.mmap(-1, pages + page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + pages), page, 0) == 0
        self.address = start + pages - size
        self.array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.address))


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect through libc")
@pytest.mark.parametrize("count", [1, 3, 16, 63, 65, 1000])
def test_nothing_is_touched_past_the_end(count):
    x, y, coefficients = Guarded(count), Guarded(count), np.ones(count, np.float32)
    x.array[:] = np.arange(count)
    a, scratch = pointer(coefficients), np.zeros((4, count * 3 + 3))
    core.normal_noise(y.address, (1, 1, count), (0, 0, 0), (1, 1, count), 0, 0, 0, 1)
    for c, v, last in ((1, count, False), (count, 1, True), (1, count, True)):
        core.group_norm_stats(pointer(scratch), x.address, 0, 1, c, v, 1, last, 0, 1)
        core.group_norm_apply(y.address, x.address, a, a, a, True, 1, c, v, last, 0, 1)
    identity = np.eye(count) if count < 100 else np.eye(1)
    n = len(identity)
    for outer, inner in ((1, count // n), (count // n, 1)):
        core.axis_apply(y.address, x.address, pointer(identity), outer, n, n, inner, 0.0, 1)
        assert np.array_equal(y.array, x.array)
    core.gather(y.address, (1, 1, count), (count, count, 1), x.address, (1, 1, count), (count, count, 1), (0, 0, 0), 1)
    assert np.array_equal(y.array, x.array)
    core.blend_add(
        y.address,
        (1, 1, count),
        (count, count, 1),
        x.address,
        (1, 1, count),
        (count, count, 1),
        (0, 0, 0),
        (a, a, a),
        0,
        1,
    )
    assert np.array_equal(y.array, 2 * x.array)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect through libc")
@pytest.mark.parametrize("boundary", [0, 1])
@pytest.mark.parametrize("order", [1, 3, 5])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 3), (3, 4, 5), (1, 2, 67)])
def test_splines_touch_nothing_past_the_end(size, order, boundary):
    """Coefficients, displacement and result all end at a page that cannot be read, and every position is far outside."""
    padded = tuple(n + order + 1 for n in size)
    count, whole = int(np.prod(size)), int(np.prod(padded))
    c, d, y, slope = Guarded(whole), Guarded(3 * count), Guarded(count), Guarded(3 * count)
    x = Guarded(count)
    x.array[:] = d.array[:] = 1e6
    core.prefilter_f32(c.address, x.address, 1, size, order, boundary, False, 1)
    core.prefilter_f32(x.address, c.address, 1, size, order, boundary, True, 1)
    c.array[:] = 1.0
    call = sampling(size, size, order, boundary)
    core.resample3d_f32(y.address, c.address, d.address, *call)
    assert np.allclose(y.array, 1.0)
    core.resample3d_slope_f32(slope.address, c.address, d.address, y.address, *call)
    assert np.allclose(slope.array, 0.0, atol=1e-5)
    core.resample3d_adjoint_f32(c.address, d.address, y.address, *call)
    assert np.isclose(c.array.sum(), count, rtol=1e-5)


def test_the_module_links_neither_torch_nor_cuda():
    with open("/proc/self/maps") as maps:
        path = next((line.split()[-1] for line in maps if "/_native" in line), None)
    if path is None:
        pytest.skip("no /proc/self/maps")
    needed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    assert "torch" not in needed and "cudart" not in needed and "libcuda" not in needed


def test_cuda_devices_answers_without_a_driver():
    count, why = core.cuda_devices()
    assert count > 0 or why
    assert core.with_cuda or why == "built without CUDA"
    assert torch.cuda.is_available() or count == 0
