"""Does a backend compute what its SPEC promises? One answer for the parity test, the parity matrix, the goldens of
the C++ tests and the script for a GPU.

The oracle is the SPEC's reference in float64 on the CPU, given the very numbers (rounded to the dtype under test)
that the backend is given.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mrisr.errors import BackendError
from mrisr.ops._dispatch import Backend, interpreted
from tests.ops.cases.spec import Spec

SEED = 20
INTERPRETED_ELEMENTS = 200_000  # Triton's interpreter takes tens of seconds for more; half precision gets a tenth
GRADIENT_TOLERANCE = 3e-5  # float32, of the largest entry of each gradient


@dataclass(frozen=True)
class Outcome:
    """status: "passed", "skipped" or "failed". error: as `deviation` gives it, None where nothing was computed.
    reason: why it was skipped, or what went wrong."""

    status: str
    error: float | None = None
    reason: str = ""


def device_of(backend: Backend) -> str:
    """Where the tensors of a call to this backend have to lie on this machine."""
    if backend.name in ("native", "reference") or (backend.name == "triton" and interpreted()):
        return "cpu"
    return "cuda" if backend.name in ("cuda", "triton") or torch.cuda.is_available() else "cpu"


def arguments(spec: Spec, case: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict:
    """What `spec.call` gets for a case: the same numbers every time, floats in `dtype`, strides kept."""
    args = cast(spec.cases[case](torch.Generator().manual_seed(SEED)), dtype, device)
    takes_device = "device" in inspect.signature(spec.call).parameters
    return {**args, "device": device} if takes_device else args


def cast(args: dict, dtype: torch.dtype, device: str = "cpu") -> dict:
    """Floating tensors in `dtype`; matrices stay float64, as callers hand them over."""

    def change(value, to):
        if isinstance(value, torch.Tensor):
            return value.to(device=device, dtype=to if value.is_floating_point() else value.dtype)
        return [change(v, to) for v in value] if isinstance(value, (list, tuple)) else value

    return {k: change(v, torch.float64 if k == "matrix" else dtype) for k, v in args.items()}


def oracle(spec: Spec, args: dict) -> torch.Tensor:
    """The float64 reference on the CPU, of exactly these arguments."""
    args = {k: v for k, v in args.items() if k != "device"}
    return spec.reference(**cast(args, torch.float64))


def deviation(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest |got - expected| / max(1, |expected|); infinite where shapes or the places of NaN differ."""
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    if got.shape != expected.shape or not torch.equal(got.isnan(), expected.isnan()):
        return torch.inf
    same = (got == expected) | got.isnan()  # infinities of one sign are equal; their difference is NaN
    error = torch.where(same, 0.0, (got - expected).abs() / expected.abs().clamp(min=1))
    return float(error.nan_to_num(nan=torch.inf, posinf=torch.inf).max()) if error.numel() else 0.0


def tasks(spec: Spec, backend: Backend, gradients: bool = False) -> Iterator[tuple[torch.dtype, str]]:
    """(dtype, case) of everything that this backend can be asked for: what no machine can run is not among it, nor
    what takes Triton's interpreter too long."""
    for dtype in (torch.float32,) if gradients else spec.tolerance:
        for case in spec.cases:
            if not spec.refused(backend.name, dtype, case, gradients) and not _too_slow(spec, backend, case, dtype):
                yield dtype, case


def values(spec: Spec, backend: Backend, dtype: torch.dtype, case: str) -> Outcome:
    """One case in one dtype, forward."""

    def compute() -> Iterator[tuple[str, float]]:
        args = arguments(spec, case, dtype, device_of(backend))
        yield "value", deviation(spec.call(**args, backend=backend.name), oracle(spec, args))

    return _outcome(backend, compute, spec.tolerance[dtype])


def gradients(spec: Spec, backend: Backend, case: str) -> Outcome:
    """One case in float32: every gradient of the SPEC, each by the size of its largest entry."""

    def compute() -> Iterator[tuple[str, float]]:
        args = arguments(spec, case, torch.float32, device_of(backend))
        found = derivatives(lambda **kw: spec.call(**kw, backend=backend.name), spec, args)
        plain = cast({k: v for k, v in args.items() if k != "device"}, torch.float64)
        expected = derivatives(spec.reference, spec, plain)
        for name, gradient in found.items():
            scale = float(expected[name].abs().nan_to_num(0.0).max()) if expected[name].numel() else 1.0
            yield f"d {name}", deviation(gradient.double() / max(1.0, scale), expected[name] / max(1.0, scale))

    return _outcome(backend, compute, GRADIENT_TOLERANCE)


def derivatives(
    function: Callable, spec: Spec, args: dict, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Gradients of sum(out * cos(0, 1, 2, ...)) by the SPEC's arguments; the cosines rounded to `dtype`."""
    leaves = {k: args[k].detach().clone().requires_grad_() for k in spec.gradients if args.get(k) is not None}
    out = function(**{**args, **leaves})
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), upstream(out, dtype).to(out))))


def upstream(out: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The gradient that `derivatives` gives to a result of this shape: float64, contiguous, rounded to `dtype`."""
    flat = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).to(dtype)
    return flat.double().reshape(out.shape)


def _outcome(backend: Backend, compute: Callable, tolerance: float) -> Outcome:
    reason = backend.available()
    if reason is not None:
        return Outcome("skipped", reason=reason)
    try:
        found = dict(compute())
    except BackendError as error:
        why = re.search(r"cannot run: (.*?)(\. Backends that can|$)", str(error))
        return Outcome("skipped", reason=why.group(1) if why else str(error))
    worst = max(found, key=found.get, default=None)
    if worst is None:
        return Outcome("passed", 0.0)
    text = f"{worst}: {found[worst]:.2e} > {tolerance:.0e}"
    passed = found[worst] <= tolerance
    return Outcome("passed" if passed else "failed", found[worst], "" if passed else text)


def _too_slow(spec: Spec, backend: Backend, case: str, dtype: torch.dtype) -> str | None:
    if not (backend.name == "triton" and interpreted()):
        return None
    limit = INTERPRETED_ELEMENTS if dtype == torch.float32 else INTERPRETED_ELEMENTS // 10
    return f"more than {limit} elements in the interpreter" if elements(spec, case) > limit else None


def elements(spec: Spec, case: str) -> int:
    """Of all tensors that a case is called with."""
    return sum(v.numel() for v in arguments(spec, case).values() if isinstance(v, torch.Tensor))


@contextmanager
def nan_filled_empty() -> Iterator[None]:
    """Inside, fresh memory of PyTorch's holds NaN, so that an element which an operator forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
