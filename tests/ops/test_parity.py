"""Every family x backend x case x dtype against the float64 reference, values and gradients, driven by the SPECs.

Triton's part runs in Triton's interpreter, in a process of its own: tests/native/test_triton.py.
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


def _absent(backend) -> str | None:
    """Why this backend is not tested here, or None."""
    if backend.name == "triton" and not _dispatch.interpreted() and backend.available() is not None:
        return "runs by the interpreter: tests/native/test_triton.py"
    return backend.available()


ABSENT = {b.name: _absent(b) for spec in SPECS.values() for b in spec.family.backends if _absent(b) is not None}


@pytest.mark.parametrize("name", ["native", "cuda", "triton"])
def test_backends_are_here(name):
    """One skip for each that is absent, with its reason; its cases are not collected."""
    if name == "native" and os.environ.get("CI") and not native.build_info().get("NATIVE_REASON"):
        assert name not in ABSENT
    if name in ABSENT:
        pytest.skip(f"{name}: {ABSENT[name]}")


def _combinations(gradients: bool) -> Iterator:
    for name, spec in SPECS.items():
        for backend in spec.family.backends:
            if backend.name in ABSENT or (gradients and not spec.gradients):
                continue
            for dtype, case in parity.tasks(spec, backend, gradients):
                kind = "" if gradients else f"{str(dtype).removeprefix('torch.')}-"
                yield pytest.param(spec, backend, dtype, case, id=f"{name}-{backend.name}-{kind}{case}")


@pytest.mark.parametrize(("spec", "backend", "dtype", "case"), list(_combinations(gradients=False)))
def test_values(spec, backend, dtype, case):
    outcome = parity.values(spec, backend, dtype, case)
    assert outcome.status == "passed", f"{spec.family.name} {backend.name} {case}: {outcome.reason}"


@pytest.mark.parametrize(("spec", "backend", "dtype", "case"), list(_combinations(gradients=True)))
def test_gradients(spec, backend, dtype, case):
    outcome = parity.gradients(spec, backend, case)
    assert outcome.status == "passed", f"{spec.family.name} {backend.name} {case}: {outcome.reason}"


@pytest.mark.parametrize("name", SPECS)
def test_what_is_not_tested_is_refused(name):
    """Every combination that a SPEC calls impossible, and the backend says why."""
    spec = SPECS[name]
    for backend in spec.family.backends:
        for gradients in (False, True) if spec.gradients else (False,):
            for dtype in spec.tolerance:
                for case in spec.cases if backend.name not in ABSENT else ():
                    if not spec.refused(backend.name, dtype, case, gradients) or (gradients and dtype != torch.float32):
                        continue
                    check = parity.gradients if gradients else parity.values
                    outcome = check(*((spec, backend, case) if gradients else (spec, backend, dtype, case)))
                    assert outcome.status == "skipped", f"{backend.name} {dtype} {case} runs: take it off the list"


@pytest.mark.parametrize("name", SPECS)
def test_public_functions_document_themselves(name):
    spec = SPECS[name]
    assert spec.cases and spec.tolerance
    assert "backend" in inspect.signature(spec.call).parameters
    assert spec.family.backends[-1].name == "reference"
    assert spec.family.backends[-1].available() is None


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
