"""Every family x backend x case x dtype against the float64 reference, values and gradients, driven by the SPECs.

Triton's part runs in Triton's interpreter: tests/native/test_triton.py starts this file once more for it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator

import pytest
import torch

from mrisr import native
from mrisr.ops import _dispatch
from tests.ops import parity
from tests.ops.cases import SPECS

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def _assert_passed(outcome: parity.Outcome, what: str) -> None:
    if outcome.status == "skipped":
        pytest.skip(f"{what}: {outcome.reason}")
    assert outcome.status == "passed", f"{what}: {outcome.reason}"


def _combinations() -> Iterator:
    for name, spec in SPECS.items():
        for backend in spec.family.backends:
            for dtype in spec.tolerance:
                for case in spec.cases:
                    label = f"{name}-{backend.name}-{str(dtype).removeprefix('torch.')}-{case}"
                    yield pytest.param(spec, backend, dtype, case, id=label)


@pytest.mark.parametrize(("spec", "backend", "dtype", "case"), list(_combinations()))
def test_values(spec, backend, dtype, case):
    _assert_passed(parity.values(spec, backend, dtype, case), f"{spec.family.name} {backend.name} {case}")


def _gradient_combinations() -> Iterator:
    for name, spec in SPECS.items():
        for backend in spec.family.backends if spec.gradients else ():
            for case in spec.cases:
                yield pytest.param(spec, backend, case, id=f"{name}-{backend.name}-{case}")


@pytest.mark.parametrize(("spec", "backend", "case"), list(_gradient_combinations()))
def test_gradients(spec, backend, case):
    _assert_passed(parity.gradients(spec, backend, case), f"{spec.family.name} {backend.name} {case}")


@pytest.mark.parametrize("name", SPECS)
def test_public_functions_document_themselves(name):
    spec = SPECS[name]
    assert spec.cases and spec.tolerance
    assert "backend" in inspect.signature(spec.call).parameters
    assert spec.family.backends[-1].name == "reference"
    assert spec.family.backends[-1].available() is None


def _pairs() -> Iterator:
    for name, spec in SPECS.items():
        for backend in spec.family.backends:
            yield pytest.param(spec, backend, id=f"{name}-{backend.name}")


@pytest.mark.parametrize(("spec", "backend"), list(_pairs()))
def test_no_backend_was_skipped_everywhere(spec, backend):
    """A machine that skips every case of a backend has not passed its parity test; CUDA alone may be absent."""
    if backend.name == "cuda" and backend.available() is not None:
        pytest.skip(f"compiled only, see benchmarks/results/UNMEASURED.md: {backend.available()}")
    if backend.name == "triton" and not _dispatch.interpreted() and backend.available() is not None:
        pytest.skip("runs by the interpreter: tests/native/test_triton.py")
    chosen = native.build_info().get("NATIVE_REASON")
    if backend.name == "native" and chosen and not os.environ.get("CI"):
        pytest.skip(f"no native core in this build: {chosen}")
    assert backend.available() is None
    reasons = set()
    for dtype in spec.tolerance:
        for case in spec.cases:
            outcome = parity.values(spec, backend, dtype, case)
            if outcome.status == "passed":
                return
            reasons.add(outcome.reason)
    pytest.fail(f"{spec.family.name} {backend.name}: no case ran: {'; '.join(sorted(reasons))}")


@pytest.mark.parametrize(
    ("got", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.2),
        ([0.1], [0.0], 0.1),
        ([float("nan"), 1.0], [1.0, 1.0], float("inf")),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
        ([float("inf")], [1.0], float("inf")),
        ([float("inf")], [float("inf")], 0.0),
        ([float("inf")], [float("-inf")], float("inf")),
        ([1.0], [1.0, 1.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_the_measure_itself(got, expected, error):
    assert parity.deviation(torch.tensor(got), torch.tensor(expected)) == pytest.approx(error)


def test_a_wrong_backend_fails():
    """The comparison has teeth: half a per cent of error is seen in every family."""
    for spec in SPECS.values():

        def wrong(**kw):
            kw.pop("backend")
            return 1.005 * parity.oracle(spec, kw) + 1e-4  # noqa: B023

        broken = type(spec)(**{**vars(spec), "call": wrong, "gradients": ()})
        found = {parity.values(broken, spec.family.backends[-1], torch.float32, case).status for case in spec.cases}
        assert "failed" in found and "skipped" not in found, spec.family.name
