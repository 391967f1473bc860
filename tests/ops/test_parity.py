"""Every family x backend x case x dtype against the float64 reference, values and gradients, driven by the
SPECs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch

from mrisr import ops
from mrisr.ops import _dispatch

SPECS = ops.specs()
pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def _arguments(spec, case: str) -> dict:
    return spec.cases[case](torch.Generator().manual_seed(20))


def _map(value, change):
    if isinstance(value, torch.Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return [change(v) for v in value]
    return value


def _cast(args: dict, dtype: torch.dtype) -> dict:
    # Not .to(): it keeps strides, and matrices stay float64 as the callers hand them over.
    return {k: v if k == "matrix" else _map(v, lambda t: t.to(dtype)) for k, v in args.items()}


def _oracle(spec, args: dict) -> torch.Tensor:
    return spec.reference(**_cast(args, torch.float64))


def _assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    assert got.shape == expected.shape, what
    got, expected = got.double(), expected.double()
    assert torch.equal(got.isnan(), expected.isnan()), f"{what}: NaN in other places"
    error = ((got - expected).abs() / expected.abs().clamp(min=1)).nan_to_num(0.0)
    assert error.numel() == 0 or error.max() <= tolerance, f"{what}: {error.max():.2e} > {tolerance:.0e}"


def _combinations() -> Iterator:
    for name, spec in SPECS.items():
        for backend in spec.family.backends:
            for dtype in spec.tolerance:
                for case in spec.cases:
                    label = f"{name}-{backend.name}-{str(dtype).removeprefix('torch.')}-{case}"
                    yield pytest.param(spec, backend, dtype, case, id=label)


def _call(spec, backend: _dispatch.Backend, args: dict) -> torch.Tensor:
    reason = backend.available()
    if reason is not None:
        pytest.skip(f"{backend.name}: {reason}")
    try:
        return spec.call(**args, backend=backend.name)
    except _dispatch.BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("spec", "backend", "dtype", "case"), list(_combinations()))
def test_values(spec, backend, dtype, case):
    args = _cast(_arguments(spec, case), dtype)
    got = _call(spec, backend, args)
    _assert_close(got, _oracle(spec, args), spec.tolerance[dtype], f"{spec.family.name} {backend.name} {case}")


def _gradient_combinations() -> Iterator:
    for name, spec in SPECS.items():
        for backend in spec.family.backends if spec.gradients else ():
            for case in spec.cases:
                yield pytest.param(spec, backend, case, id=f"{name}-{backend.name}-{case}")


def _gradients(function, spec, args: dict) -> dict[str, torch.Tensor]:
    leaves = {k: args[k].detach().clone().requires_grad_() for k in spec.gradients if args.get(k) is not None}
    out = function(**{**args, **leaves})
    upstream = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).reshape(out.shape).to(out.dtype)
    found = torch.autograd.grad(out, list(leaves.values()), upstream)
    return dict(zip(leaves, found))


@pytest.mark.parametrize(("spec", "backend", "case"), list(_gradient_combinations()))
def test_gradients(spec, backend, case):
    args = _cast(_arguments(spec, case), torch.float32)
    _call(spec, backend, args)  # skips with the reason
    expected = _gradients(spec.reference, spec, _cast(args, torch.float64))
    found = _gradients(lambda **kw: spec.call(**kw, backend=backend.name), spec, args)
    for name, gradient in found.items():
        scale = max(1.0, float(expected[name].abs().max())) if expected[name].numel() else 1.0
        _assert_close(gradient / scale, expected[name] / scale, 3e-5, f"d {name} of {case}")


@pytest.mark.parametrize("name", SPECS)
def test_public_functions_document_themselves(name):
    spec = SPECS[name]
    assert spec.cases and spec.tolerance
    assert "backend" in inspect.signature(spec.call).parameters
    assert spec.family.backends[-1].name == "reference"
    assert spec.family.backends[-1].available() is None


def test_some_backend_beside_the_reference_ran():
    """A machine with a compiler that skips everything native is not a passed parity test."""
    from mrisr import native

    if native.reason() is not None and native.build_info().get("NATIVE_REASON"):
        pytest.skip(native.reason())
    assert native.reason() is None
    assert {f for f, b, why in ops.backend_table() if b == "native" and why is None} == set(SPECS)
