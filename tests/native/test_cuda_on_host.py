"""CUDA kernels run on the CPU (cuda_on_host.py): every kernel, every SPEC case, and faults that have to be found."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cuda_on_host

from tests.ops import parity

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="module")
def module():
    return cuda_on_host.Host(cuda_on_host.kept()).module()


HALF = pytest.mark.slow("the same kernels on two more types, their threads as fibres")
TASKS = [
    pytest.param(
        spec,
        dtype,
        what,
        id=f"{name}-{str(dtype).removeprefix('torch.')}-{what}",
        marks=() if dtype == torch.float32 else HALF,
    )
    for name, spec in cuda_on_host.specs().items()
    for dtype, what in cuda_on_host.tasks(spec)
]


@pytest.mark.parametrize(("spec", "dtype", "what"), TASKS)
def test_values(module, spec, dtype, what):
    """Against float64, with equal bits in every order of threads and blocks, inside the tensors' memory."""
    with parity.nan_filled_empty():
        for case in spec.cases:
            error = cuda_on_host.check(module, spec, dtype, what, case)
            assert error <= cuda_on_host.limit(spec, dtype, what), case


def test_every_kernel_has_run(module):
    """Also alone: the smallest case of every operator enters every kernel but those of wide packs."""
    for spec in cuda_on_host.specs().values():
        for dtype, what in cuda_on_host.tasks(spec):
            for case in list(spec.cases)[:2] if dtype == torch.float32 else ():
                cuda_on_host.check(module, spec, dtype, what, case)
    entered = [kernel for kernel, threads in module.ran().items() if threads]
    assert cuda_on_host.kernels()
    for name in cuda_on_host.kernels():
        assert any(f"::{name}(" in kernel for kernel in entered), f"{name} never ran"


def faulty(module, name: str, run) -> torch.Tensor:
    with cuda_on_host.under(module, run):
        x, y = torch.arange(64, dtype=torch.float32), torch.zeros(64)
        module.faulty(name, y.data_ptr(), x.data_ptr())
        return y.clone()


@pytest.mark.parametrize("name", ["no_barrier", "overwritten_early", "blocks_meet"])
def test_a_race_is_seen(module, name):
    found = [faulty(module, name, run).nan_to_num(-1.0) for run in cuda_on_host.RUNS]
    assert any(not torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("name", "behind", "words"),
    [
        ("reads_behind", True, "thread 63 of block .* leaves its memory: 0 bytes behind a tensor of 256 bytes"),
        ("reads_before", False, "thread 0 of block .* leaves its memory: 4 bytes before a tensor of 256 bytes"),
        ("writes_behind", True, "thread 63 of block .* leaves its memory: 0 bytes behind a tensor of 256 bytes"),
        (
            "some_wait",
            True,
            "threads wait for others that never come: .*thread 0 .* waits at .*; thread 32 .* returned",
        ),
        ("misaligned", False, "thread 0 of block .* does what is not defined: a misaligned address"),
        ("outside_its_array", True, "thread 63 of block .* does what is not defined: .*an index outside its array"),
        ("outside_its_mask", True, "shuffles with a lane outside its mask"),
    ],
)
def test_a_fault_is_named(module, name, behind, words):
    with pytest.raises(RuntimeError, match=words):
        faulty(module, name, ("ascending", 0, 16384, behind))
    assert torch.equal(
        faulty(module, "right", cuda_on_host.RUNS[2]), torch.arange(63.0, -1.0, -1.0)[torch.arange(64) ^ 1]
    )


def test_shared_memory_begins_as_nan(module):
    assert faulty(module, "never_written", cuda_on_host.RUNS[0]).isnan().all()
